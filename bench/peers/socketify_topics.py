"""socketify (uWebSockets) with its topics."""

from typing import Any

from launch import PORT
from socketify import App, OpCode


def upgrade(response: Any, request: Any, context: Any) -> None:
    """Store the room for `opened`."""
    response.upgrade(
        request.get_header("sec-websocket-key"),
        request.get_header("sec-websocket-protocol"),
        request.get_header("sec-websocket-extensions"),
        context,
        request.get_parameter(0),
    )


def opened(client: Any) -> None:
    """Subscribe to the room."""
    client.subscribe(client.get_user_data())


def message(client: Any, text: str, opcode: OpCode) -> None:
    """Publish the text to the room."""
    client.publish(client.get_user_data(), text, opcode)


app = App()
app.ws("/ws/:room", {"upgrade": upgrade, "open": opened, "message": message, "idle_timeout": 0})
app.listen({"port": PORT, "host": "127.0.0.1"})
app.run()
