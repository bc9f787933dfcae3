"""Feed a parser with what libFuzzer invents, until something else than its own error comes.

Usage: python fuzz/parsers.py PARSER [-max_total_time=300] [FOLDER]     FOLDER keeps the corpus

It needs `atheris`, which is in no lock file: see CONTRIBUTING.md.
"""

import sys
from collections.abc import Callable, Iterable
from functools import partial

import atheris

with atheris.instrument_imports(include=["wsfleet"]):
    from wsfleet.protocol.centrifuge.codec import Codec, ProtocolError
    from wsfleet.protocol.centrifuge.json_codec import JSONCodec
    from wsfleet.protocol.centrifuge.protobuf_codec import ProtobufCodec
    from wsfleet.transports import deflate, frames

LIMIT = 1000
CODECS = (JSONCodec(), ProtobufCodec())


def read(pieces: Iterable[bytes]) -> list[object]:
    """What a reader of frames makes of bytes in pieces; a violation's code is the last."""
    reader, found = frames.FrameReader(LIMIT, deflate.inflate), list[object]()
    try:
        for piece in pieces:
            for message in reader.feed(piece):
                found.append(message)
                if message.opcode == frames.CLOSE:
                    assert isinstance(message.payload, bytes)
                    found.append(frames.parse_close(message.payload))
    except frames.ViolationError as violation:
        found.append(violation.code)
    return found


def cut_frames(data: bytes) -> None:
    """Frames say the same however they are cut; the first byte is how long the pieces are."""
    size = 1 + (data[0] if data else 0)
    stream = data[1:] + bytes(14)  # no head is left half read: it might be a violation already
    pieces = (stream[start : start + size] for start in range(0, len(stream), size))
    assert read(pieces) == read([stream])


def commands(codec: Codec, data: bytes) -> None:
    """Commands that were read are the same when they are written and read again."""
    try:
        found = codec.decode(data)
    except ProtocolError:
        return
    assert codec.decode(codec.encode_commands(found)) == found


PARSERS: dict[str, Callable[[bytes], None]] = {
    "frames": cut_frames,
    **{codec.name: partial(commands, codec) for codec in CODECS},
}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in PARSERS:
        sys.exit(f"{__doc__}\nPARSER is one of {', '.join(PARSERS)}")
    atheris.Setup([sys.argv[0], *sys.argv[2:]], PARSERS[sys.argv[1]])
    atheris.Fuzz()
