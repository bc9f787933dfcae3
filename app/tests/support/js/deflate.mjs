// Say something to a node with npm's ws, print the extensions and what it hears, and leave.
import WebSocket from "ws";

const client = new WebSocket(process.argv[2], { perMessageDeflate: { threshold: 0 } });
client.on("open", () => client.send("x".repeat(5000)));
client.on("message", (data) => {
  const message = JSON.parse(data);
  if (message.type === "message") {
    console.log(JSON.stringify([client.extensions, message.data]));
    client.close();
  }
});
