/* The page of the game. It shows the board that the server sends, and sends steps: the server decides. */

const $ = (id) => document.getElementById(id);
const KEYS = {
  ArrowLeft: "left", ArrowRight: "right", ArrowUp: "up", ArrowDown: "down", a: "left", d: "right", w: "up", s: "down",
};
const WAYS = { left: [-1, 0], right: [1, 0], up: [0, -1], down: [0, 1] };
const [WIDTH, HEIGHT] = [24, 14];
const STEP = 100; // milliseconds, as a turn of the server
const KEPT = 5000; // milliseconds for which a step may have to be sent again
const SILENCE = 10000; // milliseconds without a board after which the connection is dead
const FINAL = [1008, 4000]; // close codes after which the page does not come back

const room = location.pathname.match(/^\/rooms\/([a-z0-9-]{1,30})$/)?.[1];
let socket, you, mine, node, attempts = 0, heard = 0; // `you`: the player's id, `mine`: the player on the board
let number = 0, steps = []; // the last steps: number, go, at

// The connection.

function key() { // of this tab: it identifies the player
  if (!sessionStorage.getItem("key")) {
    const bytes = crypto.getRandomValues(new Uint8Array(16));
    sessionStorage.setItem("key", Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join(""));
  }
  return sessionStorage.getItem("key");
}

function connect() {
  let fresh = true; // no board has come yet
  socket = new WebSocket(`${location.origin.replace("http", "ws")}/rooms/${room}`);
  socket.onopen = () => {
    heard = Date.now();
    socket.send(JSON.stringify({ name: localStorage.getItem("name"), key: key() }));
  };
  socket.onmessage = ({ data }) => {
    const message = JSON.parse(data);
    heard = Date.now();
    if (message.you) { you = message.you; return; }
    mine = message.board.players[you];
    if (fresh) {
      fresh = false;
      attempts = 0;
      number = Math.max(number, mine.number);
      steps = steps.filter((step) => step.number > mine.number && step.at > Date.now() - KEPT);
      steps.forEach(send); // those that the board does not have
    }
    show(message);
  };
  socket.onclose = ({ code, reason }) => {
    $("game").classList.add("away");
    $("state").classList.remove("playing");
    $("state").textContent = FINAL.includes(code) ? `Closed: ${reason}` : "Reconnecting";
    if (FINAL.includes(code)) return;
    setTimeout(connect, Math.random() * Math.min(2000, 100 * 2 ** attempts++));
  };
}

setInterval(() => {
  if (socket?.readyState === WebSocket.OPEN && Date.now() - heard > SILENCE) socket.close();
}, 1000);

function send({ number, go }) {
  if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify({ number, go }));
}

function step(go) {
  steps = [...steps.filter((each) => each.at > Date.now() - KEPT), { number: ++number, go, at: Date.now() }];
  send(steps.at(-1));
}

// The board.

const hue = (id) => (parseInt(id.slice(0, 4), 16) * 137) % 360;
const shown = new Map(); // elements of the board, by name

function element(name, className, x, y) {
  let made = shown.get(name);
  if (!made) {
    made = document.createElement("div");
    made.className = className;
    shown.set(name, made);
    $("board").append(made);
  }
  made.style.setProperty("--x", x);
  made.style.setProperty("--y", y);
  return made;
}

function show({ node: now, token, board }) {
  const names = new Set();
  for (const [x, y] of board.dots) {
    names.add(`dot ${x} ${y}`);
    element(`dot ${x} ${y}`, "dot", x, y);
  }
  const players = Object.entries(board.players);
  for (const [id, player] of players) {
    names.add(id);
    const disc = element(id, "player", player.x, player.y);
    if (!disc.firstChild) {
      disc.style.setProperty("--hue", hue(id));
      disc.append(document.createElement("i"), document.createElement("span"));
      disc.firstChild.textContent = [...player.name][0].toUpperCase();
      disc.lastChild.textContent = player.name;
      disc.firstChild.onanimationend = () => disc.classList.remove("scored");
    }
    if (player.score > Number(disc.dataset.score ?? player.score)) disc.classList.add("scored");
    disc.dataset.score = player.score;
    disc.classList.toggle("you", id === you);
    disc.classList.toggle("gone", !player.here);
  }
  for (const [name, old] of shown) {
    if (!names.has(name)) {
      old.remove();
      shown.delete(name);
    }
  }
  players.sort(([, a], [, b]) => b.score - a.score || a.name.localeCompare(b.name));
  $("scores").replaceChildren(...players.map(([id, player]) => {
    const item = document.createElement("li");
    item.className = `${id === you ? "you" : ""} ${player.here ? "" : "gone"}`;
    item.style.setProperty("--hue", hue(id));
    const score = document.createElement("b");
    score.textContent = player.score;
    item.append(player.name, score);
    return item;
  }));
  if (node && node !== now) news(`The room has moved from ${node} to ${now}`);
  node = now;
  $("node").textContent = now;
  $("token").textContent = token;
  $("turn").textContent = board.turn;
  $("game").classList.remove("away");
  $("state").classList.add("playing");
  $("state").textContent = "Playing";
}

let over;
function news(text) {
  clearTimeout(over);
  $("news").textContent = text;
  over = setTimeout(() => { $("news").textContent = ""; }, 4000);
}

// The player: keys, or a pointer that is held.

let wanted = []; // directions of the keys that are down; the last one counts
let pointer; // where the pointer is held
let timer;

function toPointer() { // from the place where the player is after all steps that are under way
  const box = $("board").getBoundingClientRect();
  const to = [Math.floor(((pointer.x - box.x) / box.width) * WIDTH), Math.floor(((pointer.y - box.y) / box.height) * HEIGHT)];
  const way = steps.filter((each) => each.number > mine.number).map((each) => WAYS[each.go]);
  const right = to[0] - mine.x - way.reduce((sum, [x]) => sum + x, 0);
  const down = to[1] - mine.y - way.reduce((sum, [, y]) => sum + y, 0);
  if (!right && !down) return undefined;
  if (Math.abs(right) > Math.abs(down)) return right > 0 ? "right" : "left";
  return down > 0 ? "down" : "up";
}

function walk() {
  const go = wanted.at(-1) ?? (pointer && mine && toPointer());
  if (go) step(go);
  if (wanted.length || pointer) return;
  clearInterval(timer);
  timer = undefined;
}

function begin() {
  clearInterval(timer);
  timer = setInterval(walk, STEP);
  walk();
}

function play() {
  $("door").hidden = true;
  $("game").hidden = false;
  $("title").textContent = room;
  document.title = `Dots · ${room}`;
  addEventListener("keydown", (event) => {
    const go = KEYS[event.key];
    if (!go || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    if (event.repeat) return;
    wanted = [...wanted.filter((each) => each !== go), go];
    begin();
  });
  addEventListener("keyup", (event) => { wanted = wanted.filter((each) => each !== KEYS[event.key]); });
  addEventListener("blur", () => { wanted = []; pointer = undefined; });
  $("board").addEventListener("pointerdown", (event) => {
    $("board").setPointerCapture(event.pointerId);
    pointer = event;
    begin();
  });
  $("board").addEventListener("pointermove", (event) => { if (pointer) pointer = event; });
  for (const end of ["pointerup", "pointercancel"]) {
    $("board").addEventListener(end, () => { pointer = undefined; });
  }
  $("invite").onclick = async () => {
    if (!navigator.clipboard) return news(location.href); // a page without TLS
    await navigator.clipboard.writeText(location.href);
    return news("The link to this room is copied");
  };
  connect();
}

$("name").value = localStorage.getItem("name") ?? "";
$("room").value = room ?? "lobby";
document.querySelector("form").onsubmit = (event) => {
  event.preventDefault();
  localStorage.setItem("name", $("name").value.trim());
  if ($("room").value === room) play();
  else location.href = `/rooms/${$("room").value}`;
};
if (room && localStorage.getItem("name")) play();
else $("door").hidden = false;
