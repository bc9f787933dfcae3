"""WebSocket frames as a server sends them: unmasked, never fragmented (RFC 6455, section 5.2)."""

TEXT, BINARY = 1, 2
_FIN = 0x80


def frame(opcode: int, payload: bytes) -> bytes:
    """One whole message around `payload`, made once and written to any number of clients."""
    size = len(payload)
    if size < 126:
        return bytes((_FIN | opcode, size)) + payload
    if size < 65_536:
        return bytes((_FIN | opcode, 126)) + size.to_bytes(2, "big") + payload
    return bytes((_FIN | opcode, 127)) + size.to_bytes(8, "big") + payload
