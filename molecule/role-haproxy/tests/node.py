"""A node as a balancer sees it: ready on its private port, an echo of WebSockets on the other."""

import asyncio
import contextlib
import sys

PORT = int(sys.argv[1])


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer requests until one of them becomes a WebSocket, whose bytes then come back."""
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            if b"upgrade: websocket" in head:
                writer.write(
                    b"HTTP/1.1 101 Switching Protocols\r\n"
                    b"Connection: upgrade\r\nUpgrade: websocket\r\n"
                    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
                )
                while data := await reader.read(1000):
                    writer.write(data)
                break
            body = str(PORT).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def answer_checks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one request for /ready, or another path, on the private port."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        head = await reader.readuntil(b"\r\n\r\n")
        body = b"" if head.startswith(b"GET /ready ") else b"private"
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n" % len(body))
        writer.write(b"Connection: close\r\n\r\n" + body)
    writer.close()


async def main() -> None:
    """Serve for ever."""
    async with (
        await asyncio.start_server(serve, "127.0.0.1", PORT) as server,
        await asyncio.start_server(answer_checks, "127.0.0.1", int(f"1{PORT}")),
    ):
        await server.serve_forever()


asyncio.run(main())
