/* The panel "Try it": a client of either protocol. */
import { $, make, setText } from "./dom.js";
import { Plain, Sdk } from "./clients.js";

const LONGEST = 200; // lines of the log
const CUT = 5000; // milliseconds
const SIGNS = { in: "←", out: "→", good: "✓", bad: "✗", note: "·" };

let client = null;

function write(kind, text) {
  const log = $("log");
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  log.append(make("li", { className: kind },
    make("time", { textContent: new Date().toTimeString().slice(0, 8) }), make("span", { textContent: SIGNS[kind] }), make("span", { textContent: text })));
  while (log.children.length > LONGEST) log.firstChild.remove();
  if (atEnd) log.scrollTop = log.scrollHeight;
}

function show(state, text) {
  $("try-state").dataset.state = state;
  setText($("try-state-text"), text);
  const on = state !== "off";
  setText($("connect"), on ? "Disconnect" : "Connect");
  for (const id of ["cut", "send"]) $(id).disabled = !on;
  for (const id of ["history", "presence"]) $(id).disabled = !on || !(client instanceof Sdk);
  for (const input of [...document.getElementsByName("protocol"), $("channel"), $("token")]) input.disabled = on;
  if (!on) client = null;
}

const report = { state: show, note: write, heard: (text) => write("in", text) };
const protocol = () => document.querySelector("input[name=protocol]:checked").value;
const channel = () => $("channel").value.trim() || "broadcast";
const token = () => $("token").value.trim();

/** Runs an action of the user, and shows its error. */
async function attempt(what) {
  try {
    await what();
  } catch (error) {
    write("bad", error.code ? `${error.code}: ${error.message}` : error.message);
  }
}

export function startTryIt() {
  $("try-form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (client) return client.disconnect();
    client = protocol() === "plain" ? new Plain(report, token()) : new Sdk(report, channel(), token());
    client.connect();
  });
  for (const input of document.getElementsByName("protocol"))
    input.addEventListener("change", () => {
      $("try-channel").hidden = $("history").hidden = $("presence").hidden = protocol() === "plain";
    });
  $("cut").addEventListener("click", () => {
    write("note", `connection cut for ${CUT / 1000} s`);
    client.cut(CUT);
  });
  $("send-form").addEventListener("submit", (event) => {
    event.preventDefault();
    attempt(async () => {
      if (!client) throw new Error("connect first");
      write("out", $("message").value);
      await client.publish($("message").value);
    });
  });
  $("send-other").addEventListener("click", () => attempt(async () => {
    const text = $("message").value;
    await (protocol() === "plain" ? Plain.publishOnce(text, token()) : Sdk.publishOnce(text, channel(), token()));
    write("note", `another client has sent ${text}`);
  }));
  for (const question of ["history", "presence"])
    $(question).addEventListener("click", () => attempt(async () => {
      for (const line of await client[question]()) write("note", line);
    }));
  $("clear").addEventListener("click", () => $("log").replaceChildren());
}
