"""WebSocket frames as a server sends them: unmasked, never fragmented (RFC 6455, section 5.2)."""

TEXT = 0x81  # FIN + opcode 1


def text_frame(payload: bytes) -> bytes:
    """One text frame around UTF-8 `payload`, made once and written to any number of clients."""
    size = len(payload)
    if size < 126:
        return bytes((TEXT, size)) + payload
    if size < 65_536:
        return b"\x81\x7e" + size.to_bytes(2, "big") + payload
    return b"\x81\x7f" + size.to_bytes(8, "big") + payload
