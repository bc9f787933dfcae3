/* Fetches the state of the cluster every two seconds, and draws it. */
import { $, keep, make, number, setText } from "./dom.js";
import * as api from "./api.js";
import { drawCharts } from "./charts.js";
import { drawMap } from "./map.js";
import { startTryIt } from "./tryit.js";

const INTERVAL = 2000;
const WELL = "Nodes, balancers and Redis are healthy.";
let timer = null;

function verdict(state, text) {
  $("verdict").dataset.state = state;
  setText($("verdict-text"), text);
}

function draw(cluster) {
  const { nodes, problems, series } = cluster;
  const well = problems.length === 0;
  verdict(well ? "good" : "bad", well ? "Healthy" : `${problems.length} ${problems.length === 1 ? "problem" : "problems"}`);
  const lines = well ? [WELL] : problems;
  keep($("problems"), lines, (text) => text, (text) => make("li", { textContent: text, className: text === WELL ? "well" : "" }));
  setText($("version"), cluster.you.version);
  const ready = nodes.filter((node) => node.state === "ready").length;
  setText($("total-connections"), number(nodes.reduce((sum, node) => sum + node.connections, 0)));
  setText($("note-connections"), `${ready} of ${nodes.length} nodes ready`);
  setText($("total-received"), number(series.received.at(-1)));
  setText($("total-delivered"), number(series.delivered.at(-1)));
  setText($("total-latency"), number(series.delivery_p99.at(-1), 1));
  drawMap(cluster, { drain: askToDrain, undrain: (node) => act(() => api.undrain(node.name)) });
  drawCharts(series);
}

function unlocked(yes) {
  $("unlock").hidden = yes;
  $("live").hidden = $("lock").hidden = !yes;
}

function lock(reason = "") {
  clearTimeout(timer);
  api.key.forget();
  unlocked(false);
  verdict("unknown", "Locked");
  setText($("unlock-error"), reason);
}

async function refresh() {
  clearTimeout(timer);
  if (api.key.get() === null) return;
  try {
    const cluster = await api.look();
    if (api.key.get() === null) return; // locked in the meantime
    const first = $("live").hidden;
    unlocked(true);
    draw(cluster);
    if (first) $("live").focus({ preventScroll: true });
  } catch (error) {
    if (error.status === 401 || error.status === 403) return lock(error.message);
    verdict("bad", `No answer (${error.message}), retrying`);
  }
  timer = setTimeout(refresh, document.hidden ? 5 * INTERVAL : INTERVAL);
}

async function act(what) {
  try {
    await what();
  } catch (error) {
    verdict("bad", error.message);
  }
  await refresh();
}

let draining = null;

function askToDrain(node) {
  draining = { name: node.name, force: false };
  setText($("drain-title"), `Drain ${node.name}?`);
  setText($("drain-text"), node.connections
    ? `It takes no new clients, and asks its ${number(node.connections)} clients to reconnect to other nodes.`
    : "It takes no new clients until it is undrained.");
  setText($("drain-error"), "");
  setText($("drain-do"), "Drain");
  $("drain-dialog").showModal();
}

async function drain() {
  try {
    await api.drain(draining.name, draining.force);
  } catch (error) {
    setText($("drain-error"), error.message);
    if (error.status !== 409) return;
    draining.force = true;
    setText($("drain-do"), "Drain anyway");
    return;
  }
  $("drain-dialog").close();
  await refresh();
}

$("unlock-form").addEventListener("submit", (event) => {
  event.preventDefault();
  api.key.set($("key").value);
  $("key").value = "";
  setText($("unlock-error"), "");
  refresh();
});
$("lock").addEventListener("click", () => {
  lock();
  $("key").focus();
});
$("drain-do").addEventListener("click", drain);
document.addEventListener("visibilitychange", () => document.hidden || refresh());
const given = new URLSearchParams(location.hash.slice(1)).get("key"); // the link of `wsfleet dev`
if (given !== null) {
  api.key.set(given);
  history.replaceState(null, "", location.pathname);
}
startTryIt();
refresh();
