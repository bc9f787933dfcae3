/* Clients of the two protocols with one interface. They call state(), heard() and note() of `report`. */
import "./vendor/centrifuge.js";

const { Centrifuge } = globalThis;
const url = (path) => location.origin.replace(/^http/, "ws") + path;

const plainUrl = (token) => url("/ws") + (token ? `?token=${encodeURIComponent(token)}` : "");

/** The network to the cluster. A cut closes open connections and refuses new ones. */
class Cable {
  #until = 0;
  #sockets = new Set();

  cut(milliseconds) {
    this.#until = Date.now() + milliseconds;
    for (const socket of this.#sockets) socket.close(4000, "cut");
  }

  plug(socket) {
    this.#sockets.add(socket);
    socket.addEventListener("close", () => this.#sockets.delete(socket));
    if (Date.now() < this.#until) socket.close();
    return socket;
  }
}

/** Returns the user, or the first characters of the client id. */
const who = ({ user, client }) => user || `${client.slice(0, 8)}…`;

export function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

/** `/ws`: any text is a message, every answer a JSON object. */
export class Plain {
  #cable = new Cable();
  #socket = null;
  #wanted = false;
  #attempt = 0;
  #again = null;

  constructor(report, token) {
    this.report = report;
    this.token = token;
  }

  connect() {
    this.#wanted = true;
    this.report.state("wait", "Connecting");
    const socket = this.#cable.plug(new WebSocket(plainUrl(this.token)));
    this.#socket = socket;
    socket.onopen = () => {
      this.report.state("on", "Connected; the first answer names the node");
      this.report.note("good", this.#attempt ? "reconnected; this protocol does not resend missed messages" : "connected");
      this.#attempt = 0;
    };
    socket.onmessage = ({ data }) => {
      const answer = JSON.parse(data);
      if (answer.type === "ack") this.report.state("on", `Connected to ${answer.hostname} as ${answer.client_id}`);
      if (answer.type === "ack") this.report.note("good", `ack from ${answer.hostname}, message ${answer.message_count}`);
      else if (answer.type === "error") this.report.note("bad", `${answer.code}: ${answer.message}`);
      else this.report.heard(`${JSON.stringify(answer.data)} by ${answer.client_id || "the server"} on ${answer.hostname}`);
    };
    socket.onclose = ({ code, reason }) => {
      if (this.#socket !== socket) return;
      if (!this.#wanted) return this.report.state("off", "Not connected");
      this.report.state("wait", `Connection lost (${code}${reason ? `, ${reason}` : ""}), reconnecting`);
      if (!this.#attempt) this.report.note("bad", `closed with ${code} ${reason}`);
      const delay = Math.min(3000, 250 * 2 ** this.#attempt++);
      this.#again = setTimeout(() => this.connect(), delay * (0.5 + Math.random() / 2));
    };
  }

  disconnect() {
    this.#wanted = false;
    clearTimeout(this.#again);
    this.#socket?.close(1000);
    this.report.state("off", "Not connected");
  }

  cut(milliseconds) {
    this.#cable.cut(milliseconds);
  }

  async publish(text) {
    if (this.#socket?.readyState !== WebSocket.OPEN) throw new Error("not connected");
    this.#socket.send(text);
  }

  static publishOnce(text, token) {
    return new Promise((resolve, reject) => {
      const socket = new WebSocket(plainUrl(token));
      socket.onopen = () => socket.send(text);
      socket.onmessage = ({ data }) => {
        if (!["ack", "error"].includes(JSON.parse(data).type)) return;
        socket.close(1000);
        resolve();
      };
      socket.onclose = ({ code }) => reject(new Error(`closed with ${code}`));
    });
  }
}

/** `/connection/websocket`, with the unmodified SDK from npm. */
export class Sdk {
  #cable = new Cable();
  #node = "a node";

  constructor(report, channel, token) {
    this.report = report;
    this.channel = channel;
    const cable = this.#cable;
    const heard = (text) => this.#learnNode(text);
    class Socket extends WebSocket {
      constructor(...options) {
        super(...options);
        cable.plug(this);
        this.addEventListener("message", ({ data }) => heard(data), { once: true });
      }
    }
    this.client = new Centrifuge(url("/connection/websocket"), options(token, { websocket: Socket }));
    this.client
      .on("connecting", ({ code, reason }) => {
        report.state("wait", code ? `Connection lost (${reason}), reconnecting` : "Connecting");
        if (code) report.note("bad", `connection lost: ${code} ${reason}`);
      })
      .on("connected", ({ client }) => {
        report.state("on", `Connected to ${this.#node} as ${client}`);
        report.note("good", `connected to ${this.#node}`);
      })
      .on("disconnected", ({ code, reason }) => {
        report.state("off", code ? `Not connected: ${reason}` : "Not connected");
        if (code) report.note("bad", `disconnected: ${code} ${reason}`);
      });
    this.subscription = this.client.newSubscription(channel);
    this.subscription
      .on("subscribed", ({ wasRecovering, recovered, streamPosition }) => {
        const place = streamPosition ? `, at offset ${streamPosition.offset}` : "";
        if (!wasRecovering) report.note("good", `subscribed to ${channel}${place}`);
        else if (recovered) report.note("good", `recovered ${channel}: no message is missing`);
        else report.note("bad", `${channel} could not be recovered: messages are missing`);
      })
      .on("unsubscribed", ({ code, reason }) => code && report.note("bad", `unsubscribed: ${code} ${reason}`))
      .on("publication", ({ data, offset, info }) =>
        report.heard(`${offset ? `#${offset} ` : ""}${JSON.stringify(data)}${info ? ` by ${who(info)}` : ""}`))
      .on("join", ({ info }) => report.note("note", `${who(info)} joined`))
      .on("leave", ({ info }) => report.note("note", `${who(info)} left`))
      .on("error", ({ error }) => report.note("bad", `${error.code}: ${error.message}`));
  }

  /** The connect reply names the node, but the SDK does not expose it. */
  #learnNode(text) {
    const reply = parsed(String(text).split("\n")[0]);
    this.#node = reply.connect?.node || this.#node;
  }

  connect() {
    this.subscription.subscribe();
    this.client.connect();
  }

  disconnect() {
    this.client.disconnect();
  }

  cut(milliseconds) {
    this.#cable.cut(milliseconds);
  }

  async publish(text) {
    await this.subscription.publish(parsed(text));
  }

  async history() {
    const { publications, offset } = await this.subscription.history({ limit: 10, reverse: true });
    return [`history up to offset ${offset}, newest first:`,
      ...publications.map((each) => `#${each.offset} ${JSON.stringify(each.data)}`)];
  }

  async presence() {
    const { clients } = await this.subscription.presence();
    const members = Object.values(clients);
    return [`${members.length} in ${this.channel}:`, ...members.map((each) => `${each.user || "anonymous"}, ${each.client}`)];
  }

  static async publishOnce(text, channel, token) {
    const client = new Centrifuge(url("/connection/websocket"), options(token, {}));
    client.connect();
    try {
      await client.ready(5000);
      await client.publish(channel, parsed(text));
    } finally {
      client.disconnect();
    }
  }
}

const options = (token, more) => ({ ...(token ? { token } : {}), minReconnectDelay: 250, maxReconnectDelay: 2000, name: "console", ...more });
