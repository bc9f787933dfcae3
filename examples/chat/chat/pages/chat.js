/* The page of the chat. A room is the channel `room:NAME`; the address after # names it. */

const $ = (id) => document.getElementById(id);
const HUES = [250, 330, 20, 150, 190, 280, 45, 100];

let me, rooms, client, room; // `room`: name, subscription, messages by id, people by connection

async function get(path) {
  const answer = await fetch(path);
  if (answer.status === 401) throw new Error("sign in");
  return answer.json();
}

function element(tag, className, text) {
  const made = document.createElement(tag);
  made.className = className ?? "";
  made.textContent = text ?? "";
  return made;
}

function avatar(name) {
  const sum = [...name].reduce((total, letter) => total + letter.codePointAt(0), 0);
  const made = element("span", "avatar", [...name][0].toUpperCase());
  made.style.background = `hsl(${HUES[sum % HUES.length]} 50% 45%)`;
  made.setAttribute("aria-hidden", "true");
  return made;
}

// Messages that are not acknowledged yet wait in this tab, and are sent again after a reload.

const outbox = {
  all: () => JSON.parse(sessionStorage.getItem("outbox") ?? "[]"),
  save: (all) => sessionStorage.setItem("outbox", JSON.stringify(all)),
  add: (message) => outbox.save([...outbox.all(), message]),
  remove: (key) => outbox.save(outbox.all().filter((each) => each.key !== key)),
};

function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function send(message) {
  while (outbox.all().some((each) => each.key === message.key)) {
    try {
      await client.publish(`room:${message.room}`, { text: message.text, key: message.key });
      return outbox.remove(message.key);
    } catch (error) {
      if (error.code >= 400 && !error.temporary) { // refused: sending it again changes nothing
        outbox.remove(message.key);
        room.refused = [...room.refused, { ...message, reason: error.message }];
        return draw();
      }
      await client.ready().catch(() => {});
      await new Promise((resolve) => setTimeout(resolve, 300));
    }
  }
}

// Drawing.

function draw() {
  const scroll = $("scroll");
  const atEnd = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 80;
  const kept = [...room.messages.values()].sort((a, b) => a.id - b.id);
  const keys = new Set(kept.map((each) => each.key));
  const own = (each) => ({ ...each, user: me.id, author: me.name });
  const waiting = outbox.all().filter((each) => each.room === room.name && !keys.has(each.key));
  const all = [
    ...kept,
    ...room.refused.map((each) => ({ ...own(each), state: "failed" })),
    ...waiting.map((each) => ({ ...own(each), state: "waiting" })),
  ];
  let before;
  $("messages").replaceChildren(...all.flatMap((each) => {
    const made = drawMessage(each, before);
    before = each;
    return made;
  }));
  if (atEnd) scroll.scrollTop = scroll.scrollHeight;
}

function drawMessage(message, before) {
  const time = new Date((message.time ?? 0) * 1000);
  const day = time.toDateString();
  const newDay = message.time && day !== (before && new Date(before.time * 1000).toDateString());
  const first = newDay || before?.user !== message.user || message.time - before.time > 300;
  const item = element("li", `message ${message.state ?? ""}`);
  item.classList.toggle("first", Boolean(first));
  item.classList.toggle("mine", message.user === me.id);
  item.dataset.key = message.key;
  const by = element("span", "by");
  const at = message.time ? time.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" }) : "";
  by.append(element("b", "", message.author), message.reason ?? at);
  item.append(avatar(message.author), by, element("div", "bubble", message.text));
  const today = day === new Date().toDateString() ? "Today" : time.toLocaleDateString();
  return newDay ? [element("li", "day", today), item] : [item];
}

function drawPeople() {
  const names = [...new Set(room.people.values())].sort((a, b) => a.localeCompare(b));
  $("count").textContent = names.length;
  $("people").replaceChildren(...names.map((name) => {
    const item = element("li");
    item.append(avatar(name), element("span", "", name === me.name ? `${name} (you)` : name));
    return item;
  }));
}

function drawRooms() {
  $("rooms").replaceChildren(...rooms.map(({ name, title }) => {
    const link = element("a");
    link.href = `#${name}`;
    if (name === room?.name) link.setAttribute("aria-current", "page");
    link.append(element("span", "", title));
    const item = element("li");
    item.append(link);
    return item;
  }));
  const title = rooms.find((each) => each.name === room?.name)?.title ?? "";
  $("title").textContent = title;
  document.title = title ? `${title} · Chat` : "Chat";
}

function showState(text, connected) {
  $("state").textContent = text;
  $("state").classList.toggle("connected", connected);
}

// A room.

async function load(opened, before) {
  const query = before ? `?before=${before}` : "";
  const found = await get(`api/rooms/${encodeURIComponent(opened.name)}/messages${query}`);
  for (const message of found) opened.messages.set(message.id, message);
  if (opened === room) {
    $("earlier").hidden = found.length < 50;
    draw();
  }
}

function heard(opened, data) {
  if (data.renamed) {
    rooms = rooms.map((each) => (each.name === data.renamed.name ? data.renamed : each));
    drawRooms();
  } else if (data.notice) {
    $("messages").append(element("li", "notice", data.notice));
  } else {
    opened.messages.set(data.id, data);
    outbox.remove(data.key);
    if (opened === room) draw();
  }
}

function open(name) {
  if (room) client.removeSubscription(room.subscription);
  const subscription = client.newSubscription(`room:${name}`);
  const opened = { name, subscription, messages: new Map(), people: new Map(), refused: [] };
  room = opened;
  const nameOf = (info) => info.connInfo?.name ?? info.user;
  subscription.on("subscribed", async ({ wasRecovering, recovered }) => {
    // Messages published before now are in the database; later ones come by the subscription.
    if (!wasRecovering || !recovered) await load(opened);
    const { clients } = await subscription.presence();
    opened.people = new Map(Object.values(clients).map((info) => [info.client, nameOf(info)]));
    drawPeople();
  });
  subscription.on("publication", ({ data }) => heard(opened, data));
  subscription.on("join", ({ info }) => { opened.people.set(info.client, nameOf(info)); drawPeople(); });
  subscription.on("leave", ({ info }) => { opened.people.delete(info.client); drawPeople(); });
  subscription.on("error", ({ error }) => showState(error.message, false));
  subscription.subscribe();
  drawRooms();
  draw();
  drawPeople();
  $("text").focus();
}

// The page.

function listen() {
  const chosen = () => rooms.find((each) => each.name === location.hash.slice(1)) ?? rooms[0];
  addEventListener("hashchange", () => open(chosen().name));
  $("earlier").addEventListener("click", () => load(room, Math.min(...room.messages.keys())));
  $("rename").addEventListener("click", async () => {
    const title = prompt("New title of this room", $("title").textContent)?.trim();
    if (title) await client.rpc("room.rename", { room: room.name, title });
  });
  $("text").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    $("composer").requestSubmit();
  });
  $("text").addEventListener("input", ({ target }) => {
    target.style.height = "auto";
    target.style.height = `${target.scrollHeight + 2}px`;
  });
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = $("text").value.trim();
    if (!text) return;
    $("text").value = "";
    $("text").style.height = "auto";
    const message = { room: room.name, text, key: newKey() };
    outbox.add(message);
    draw();
    $("scroll").scrollTop = $("scroll").scrollHeight;
    send(message);
  });
  open(chosen().name);
  outbox.all().forEach(send);
}

function askForName() {
  $("login").hidden = false;
  $("name").focus();
  $("login").addEventListener("submit", async (event) => {
    event.preventDefault();
    const body = JSON.stringify({ name: $("name").value });
    const headers = { "Content-Type": "application/json" };
    const answer = await fetch("api/login", { method: "POST", headers, body });
    if (answer.ok) location.reload();
  });
}

async function start() {
  try {
    [me, rooms] = await Promise.all([get("api/me"), get("api/rooms")]);
  } catch {
    return askForName();
  }
  $("chat").hidden = false;
  $("me").textContent = `Signed in as ${me.name}`;
  const url = new URL("connection/websocket", location.href);
  client = new Centrifuge(url.href.replace(/^http/, "ws"));
  client.on("connecting", () => showState("Connecting…", false));
  client.on("connected", () => showState("Connected", true));
  client.on("disconnected", ({ code, reason }) => {
    if (code === 4501) location.reload(); // signed out
    showState(reason, false);
  });
  client.connect();
  listen();
}

start();
