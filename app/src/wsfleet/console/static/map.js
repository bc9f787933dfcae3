/* The cluster as a map: this browser, the balancers, the nodes, Redis. */
import { $, badge, bytes, colour, duration, keep, make, number, setText } from "./dom.js";

const WORDS = { maint: "maintenance" };
const WORKS = new Set(["ready", "starting", "draining", "drained", "maint"]);
const NEARLY_FULL = 0.8;

const mine = { node: null, answers: 0 };

let last = null;
new ResizeObserver(() => last && drawLinks(last)).observe($("links"));

export function drawMap(cluster, actions) {
  last = cluster;
  drawYou(cluster.you);
  drawBalancers(cluster.balancers);
  const most = Math.max(1, ...cluster.nodes.map((node) => node.connections));
  keep($("nodes"), cluster.nodes, (node) => node.name, (node) => createNode(node.name, actions), (card, node, index) =>
    card.update(node, index, most, node.name === cluster.you.node));
  drawRedis(cluster.redis);
  drawLinks(cluster);
}

/** Draws the connections as lines between boxes, and marks this browser's path and failures. */
function drawLinks({ you, balancers, nodes, redis }) {
  const origin = $("links").getBoundingClientRect();
  const box = (parent, key) => [...$(parent).children].find((child) => child.dataset.key === key).getBoundingClientRect();
  const middle = (rectangle) => rectangle.left + rectangle.width / 2 - origin.left;
  const meant = new Set(nodes.filter((node) => isDrained(node) || node.state === "maint").map(({ name }) => name));
  const links = [];
  const link = (from, to, kind, x = middle(from)) => {
    const [top, bottom] = [from.bottom - origin.top, to.top - origin.top];
    const bend = (top + bottom) / 2;
    links.push([kind, `M${x} ${top}C${x} ${bend} ${middle(to)} ${bend} ${middle(to)} ${bottom}`]);
  };
  const isWay = you.balanced && balancers.length === 1; // with several balancers, the browser's is unknown
  for (const balancer of balancers) {
    const from = box("balancers", balancer.name);
    link($("you").getBoundingClientRect(), from, balancer.error ? "gone" : isWay ? "mine" : "", middle(from));
    for (const [name, status] of Object.entries(balancer.servers))
      link(from, box("nodes", name), status.startsWith("UP") ? (isWay && name === you.node ? "mine" : "") : meant.has(name) ? "out" : "gone");
  }
  for (const server of redis.servers.filter(({ role }) => role === "primary"))
    for (const node of nodes) link(box("nodes", node.name), box("redis", server.address), WORKS.has(node.state) ? "" : "gone");
  // Marked lines are drawn last, above the others.
  links.sort(([one], [other]) => Boolean(one) - Boolean(other));
  keep($("links"), links.map(([kind, d], at) => ({ kind, d, at: String(at) })), ({ at }) => at,
    () => document.createElementNS("http://www.w3.org/2000/svg", "path"),
    (path, { kind, d }) => {
      path.setAttribute("class", kind);
      path.setAttribute("d", d);
    });
}

function drawYou(you) {
  mine.answers = mine.node === you.node ? mine.answers + 1 : 1;
  mine.node = you.node;
  const times = mine.answers === 1 ? "first answer from this node" : `${number(mine.answers)} answers in a row from this node`;
  setText($("you-node"), `is on ${you.node}: ${times}`);
  setText($("you-cookie"), !you.balanced ? "no balancer in between" : you.cookie ? `cookie ${you.cookie.split("|")[0]}` : "kept by the balancer");
}

function drawBalancers(balancers) {
  const box = $("balancers");
  keep(box, balancers.length ? balancers : [null], (balancer) => balancer?.name ?? "", (balancer) => {
    if (!balancer) return make("div", { className: "box" }, make("span", { className: "muted", textContent: "The fleet file has none" }));
    const state = badge();
    const fine = make("span", { className: "fine" });
    const element = make("div", { className: "box" },
      make("div", { className: "head" }, make("strong", { textContent: balancer.name }), state.element), fine);
    element.update = (balancer) => {
      state.set(balancer.error ? "down" : "up", balancer.error ? "no answer" : "up");
      const servers = Object.values(balancer.servers);
      const up = servers.filter((status) => status.startsWith("UP")).length;
      setText(fine, balancer.error ?? `${number(balancer.sessions)} sessions · ${up} of ${servers.length} nodes up`);
      fine.title = balancer.error ?? "";
    };
    return element;
  }, (element, balancer) => balancer && element.update(balancer));
}

function createNode(name, actions) {
  const state = badge();
  const swatch = make("span", { className: "swatch", ariaHidden: "true" });
  const tag = make("span", { className: "tag", textContent: "you", title: "This browser is connected to this node" });
  const count = make("span");
  const limit = make("small");
  const fill = make("span");
  const meter = make("div", { className: "meter", role: "meter", ariaLabel: `Connections of ${name}`, ariaValueMin: "0" }, fill);
  const rates = make("div", { className: "fine" });
  const facts = make("div", { className: "fine checks" });
  const button = make("button", { type: "button", className: "small" });
  const element = make("article", { className: "box node", ariaLabel: `Node ${name}` },
    make("div", { className: "head" }, swatch, make("strong", { textContent: name }), tag, state.element),
    make("div", { className: "count" }, count, " ", limit),
    meter, rates,
    make("div", { className: "foot" }, facts, button));
  let shown;
  button.addEventListener("click", () => (shown.wanted === "drain" || isDrained(shown) ? actions.undrain(shown) : actions.drain(shown)));
  element.update = (node, index, most, isMine) => {
    shown = node;
    element.classList.toggle("mine", isMine);
    tag.hidden = !isMine;
    for (const part of [swatch, meter]) part.style.setProperty("--swatch", colour(index));
    state.set(node.state, WORDS[node.state] ?? node.state);
    state.element.title = node.reason;
    setText(count, number(node.connections));
    setText(limit, node.limit ? `of ${number(node.limit)} connections` : "connections");
    // With a large limit, a few clients would be less than a pixel.
    fill.style.width = node.connections ? `max(3px, ${(100 * node.connections) / (node.limit ?? most)}%)` : "0";
    meter.toggleAttribute("data-full", node.limit !== null && node.connections > NEARLY_FULL * node.limit);
    meter.ariaValueNow = String(node.connections);
    meter.ariaValueMax = String(node.limit ?? most);
    const works = node.received !== null;
    setText(rates, works ? `${number(node.received)} in/s · ${number(node.delivered)} out/s · CPU ${number(node.cpu)} %` : node.reason || "no answer");
    const checks = Object.entries(node.balancers).map(([balancer, status]) => `${balancer} ${status}`).join(", ");
    const sheds = node.shedding ? `moves ${number(node.shedding)} clients to other nodes` : "";
    setText(facts, [sheds, node.uptime === null || !WORKS.has(node.state) ? "" : `up ${duration(node.uptime)}`, checks].filter(Boolean).join(" · "));
    facts.title = `${facts.textContent}${node.version ? ` · ${node.version}` : ""}`;
    const drain = !(node.wanted === "drain" || isDrained(node));
    setText(button, drain ? "Drain" : "Undrain");
    button.ariaLabel = `${button.textContent} ${name}`;
  };
  return element;
}

const isDrained = (node) => node.state === "draining" || node.state === "drained";

function drawRedis(redis) {
  const servers = redis.servers.map((server) => ({ ...server, id: server.address }));
  const sentinels = redis.sentinels.length ? [{ id: "sentinels", sentinels: redis.sentinels }] : [];
  keep($("redis"), [...servers, ...sentinels], (item) => item.id, (item) => {
    const state = badge();
    const name = make("strong");
    const fine = make("span", { className: "fine" });
    const element = make("div", { className: "box" }, make("div", { className: "head" }, name, state.element), fine);
    element.update = (item) => {
      if (item.sentinels) {
        const up = item.sentinels.filter((each) => each.up).length;
        setText(name, "Sentinels");
        state.set(up === item.sentinels.length ? "up" : 2 * up > item.sentinels.length ? "wait" : "down", `${up} of ${item.sentinels.length}`);
        setText(fine, item.sentinels.map((each) => `${each.up ? "" : "✗ "}${each.address}`).join(", "));
        fine.title = fine.textContent;
        return;
      }
      setText(name, item.role);
      state.set(item.state === "up" ? "up" : item.state === "down" ? "down" : "wait", item.state);
      const load = item.role === "primary" ? [`${number(item.operations)} ops/s`, bytes(item.memory)] : item.lag === undefined ? [] : [`lag ${item.lag} s`];
      setText(fine, [item.address, ...load].join(" · "));
      fine.title = [fine.textContent, item.version].filter(Boolean).join(" · ");
    };
    return element;
  }, (element, item) => element.update(item));
}
