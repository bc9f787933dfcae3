"""The Centrifuge protocol's codecs, without I/O, against the protocol's own samples and an SDK."""

import importlib
import json
from typing import Any, get_args, get_origin

import orjson
import pytest
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import given
from hypothesis import strategies as st

from wsfleet.protocol.centrifuge import client_pb2, messages
from wsfleet.protocol.centrifuge.codec import LONGEST_PONG, Codec, ProtocolError, field_types
from wsfleet.protocol.centrifuge.codes import DisconnectCode, ErrorCode, UnsubscribeCode, reconnects
from wsfleet.protocol.centrifuge.json_codec import JSONCodec
from wsfleet.protocol.centrifuge.messages import (
    EVENTS,
    MESSAGES,
    PING,
    REQUESTS,
    RESULTS,
    ClientInfo,
    Command,
    ConnectRequest,
    ConnectResult,
    Disconnect,
    Error,
    HistoryRequest,
    HistoryResult,
    Join,
    PresenceRequest,
    PresenceResult,
    PresenceStatsResult,
    Publication,
    PublishRequest,
    PublishResult,
    Push,
    RefreshRequest,
    Reply,
    RPCRequest,
    SendRequest,
    StreamPosition,
    SubscribeRequest,
    SubscribeResult,
    Unsubscribe,
)
from wsfleet.protocol.centrifuge.negotiation import negotiate
from wsfleet.protocol.centrifuge.protobuf_codec import ProtobufCodec

JSON = JSONCodec()
PROTOBUF = ProtobufCodec()
CODECS = [JSON, PROTOBUF]
sdk = importlib.import_module("centrifuge.protocol.client_pb2")
sdk_codecs = importlib.import_module("centrifuge.codecs")

FILTER = sdk.FilterNode(key="k", cmp="ex").SerializeToString()

both = pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.floats(-1e9, 1e9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


def a(kind: Any, codec: Codec) -> st.SearchStrategy[Any]:
    """Any value of a field's type, or any message, that `codec` can carry."""
    leaves: dict[Any, st.SearchStrategy[Any]] = {
        str: st.text(max_size=20),
        bool: st.booleans(),
        bytes: st.just(b"") | json_values.map(orjson.dumps) if codec is JSON else st.binary(),
        messages.UInt32: st.integers(0, 2**32 - 1),
        messages.Int32: st.integers(-(2**31), 2**31 - 1),
        messages.UInt64: st.integers(0, 2**64 - 1),
        messages.Int64: st.integers(-(2**63), 2**63 - 1),
    }
    if kind in leaves:
        return leaves[kind]
    if get_origin(kind) is list:
        return st.lists(a(get_args(kind)[0], codec), max_size=3)
    if get_origin(kind) is dict:
        return st.dictionaries(st.text(max_size=20), a(get_args(kind)[1], codec), max_size=3)
    return st.builds(kind, **fields_of(kind, codec))


def fields_of(kind: type, codec: Codec) -> dict[str, st.SearchStrategy[Any]]:
    """Any value for each field of a message."""
    fields = {name: a(hint, codec) for name, hint in field_types(kind).items()}
    if "tf" in fields and codec is PROTOBUF:
        fields["tf"] = st.sampled_from([b"", FILTER])
    return fields


def commands(codec: Codec) -> st.SearchStrategy[list[Command]]:
    """Frames of commands."""

    def request(kind: Any) -> st.SearchStrategy[Any]:
        fields = fields_of(kind, codec)
        if "channel" in fields:
            fields["channel"] = st.text(min_size=1, max_size=60)
        return st.builds(kind, **fields)

    requests = st.one_of([request(kind) for kind in REQUESTS])
    ids = st.integers(1, 2**32 - 1)
    sends = st.builds(Command, request=a(SendRequest, codec))
    command = st.builds(Command, ids, requests) | sends | st.just(Command())
    return st.lists(command, min_size=1, max_size=4)


def replies(codec: Codec) -> st.SearchStrategy[list[Reply]]:
    """Frames of replies."""
    ids = st.integers(1, 2**32 - 1)
    events = st.one_of([a(kind, codec) for kind in EVENTS])
    reply = (
        st.builds(Reply, ids, st.one_of([a(kind, codec) for kind in RESULTS]))
        | st.builds(Reply, ids, error=a(Error, codec))
        | st.builds(Reply, push=st.builds(Push, events, st.text(max_size=20)))
        | st.just(PING)
    )
    return st.lists(reply, min_size=1, max_size=4)


@both
@given(data=st.data())
def test_commands_arrive_as_they_were_sent(codec: Codec, data: st.DataObject) -> None:
    """Every kind of command, alone and several to a frame, in both encodings."""
    sent = data.draw(commands(codec))
    assert codec.decode(codec.encode_commands(sent)) == sent


@both
@given(data=st.data())
def test_replies_arrive_as_they_were_sent(codec: Codec, data: st.DataObject) -> None:
    """Every kind of reply and push, in both encodings, however they are put into frames."""
    sent = data.draw(replies(codec))
    assert codec.decode_replies(codec.encode(sent)) == sent
    assert codec.join(codec.encode([reply]) for reply in sent) == codec.encode(sent)


@both
@given(garbage=st.binary() | st.text())
def test_garbage_is_a_protocol_error(codec: Codec, garbage: str | bytes) -> None:
    """Any input is either commands or a protocol error, never another exception."""
    for read in (codec.decode, codec.decode_replies):
        try:
            assert read(garbage)
        except ProtocolError as error:
            assert error.disconnect is DisconnectCode.BAD_REQUEST  # noqa: PT017


@both
@given(data=st.data())
def test_damaged_frames_are_protocol_errors(codec: Codec, data: st.DataObject) -> None:
    """The same for frames that were right until a byte was changed, cut out or put in."""
    frame = bytearray(codec.encode_commands(data.draw(commands(codec))))
    begin = data.draw(st.integers(0, len(frame)))
    frame[begin : begin + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    try:
        assert codec.decode(bytes(frame))
    except ProtocolError as error:
        assert error.disconnect is DisconnectCode.BAD_REQUEST  # noqa: PT017


@given(
    st.dictionaries(
        st.sampled_from(["id", *REQUESTS.values(), "x"]),
        json_values | st.dictionaries(st.sampled_from(["channel", "data", "subs"]), json_values),
    )
)
def test_wrong_types_are_protocol_errors(value: dict[str, Any]) -> None:
    """JSON of the right names and wrong types is refused, or nothing that matters was wrong."""
    try:
        JSON.decode(json.dumps(value))
    except ProtocolError as error:
        assert error.disconnect is DisconnectCode.BAD_REQUEST  # noqa: PT017


@given(st.text() | json_values.map(json.dumps) | st.from_regex(r'[\[\]{}",:0-9eE+\-\\u. ]{0,20}'))
def test_no_accepted_payload_can_hurt_a_subscriber(text: str) -> None:
    """Each payload that a JSON client may publish can be sent to other JSON clients on one line."""
    try:
        [command] = JSON.decode(f'{{"id":1,"publish":{{"channel":"a","data":{text}}}}}')
    except (ProtocolError, ValueError):  # more than one line
        return
    assert isinstance(command.request, PublishRequest)
    if command.refusal is not None:
        return
    sent = JSON.encode_publication("a", Publication(command.request.data))
    assert b"\n" not in sent
    json.loads(sent)


# Samples of https://centrifugal.dev/docs/transports/client_protocol, of the reference server's
# tests (github.com/centrifugal/protocol, decode_test.go) and of what the SDKs write.


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (
            '{"id": 1, "subscribe": {"channel": "ch1"}}\n'
            '{"id": 2, "subscribe": {"channel": "ch2"}}',
            [Command(1, SubscribeRequest("ch1")), Command(2, SubscribeRequest("ch2"))],
        ),
        (
            '{"subscribe":{"channel":"chat:1","recover":true,"epoch":"WHBN"},"id":222}\n',
            [Command(222, SubscribeRequest("chat:1", recover=True, epoch="WHBN"))],
        ),
        (
            '{"connect":{"token":"t","name":"js","subs":{"#42":{"recover":true,"epoch":"e",'
            '"offset":18446744073709551615}},"flag":1,"headers":{"a":"b"}},"id":1}',
            [
                Command(
                    1,
                    ConnectRequest(
                        "t",
                        subs={"#42": SubscribeRequest("", "", True, "e", 2**64 - 1)},
                        name="js",
                        headers={"a": "b"},
                    ),
                )
            ],
        ),
        (
            '{"id": 4, "history": {"channel": "c", "limit": -1, "reverse": true, '
            '"since": {"offset": 2, "epoch": "e"}}}',
            [Command(4, HistoryRequest("c", -1, StreamPosition(2, "e"), True))],
        ),
        ('{"rpc":{"method":"m","data":null},"id":5}', [Command(5, RPCRequest(b"null", "m"))]),
        ('{"rpc":{"method":"m"},"id":5}', [Command(5, RPCRequest(method="m"))]),
        ('{"send":{"data":[1, 2]}}', [Command(0, SendRequest(b"[1, 2]"))]),
        ('{"id":6,"send":{"data":1}}', [Command(6, SendRequest(b"1"))]),
        ("{}", [Command()]),
        ('{"id":0,"publish":{"channel":"c"}}', [Command()]),  # a pong, in the reference server too
        (
            '{"id":7,"presence":{"channel":"c","new":{"x":[]}},"y":1}',
            [Command(7, PresenceRequest("c"))],
        ),
        ('{"id":8,"refresh":{"token":null},"publish":null}', [Command(8, RefreshRequest())]),
        (
            '{"id":9,"publish":{"channel":"c","data":{"n": 1.10,\\u0009"m":1}}}'.replace(
                "\\u0009", "\t"
            ),
            [Command(9, PublishRequest("c", b'{"n": 1.10,\t"m":1}'))],
        ),
    ],
)
def test_json_commands(frame: str, expected: list[Command]) -> None:
    """JSON as the SDKs write it; unknown fields and null mean nothing, payloads stay untouched."""
    assert JSON.decode(frame) == expected
    assert JSON.decode(frame.encode()) == expected


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (PING, "{}"),
        (Reply(1, SubscribeResult()), '{"id":1,"subscribe":{}}'),
        (
            Reply(1, error=ErrorCode.INTERNAL.error),
            '{"id":1,"error":{"code":100,"message":"internal server error","temporary":true}}',
        ),
        (
            Reply(2, error=ErrorCode.PERMISSION_DENIED.error),
            '{"id":2,"error":{"code":103,"message":"permission denied"}}',
        ),
        (
            Reply(
                1,
                ConnectResult("c", "v", subs={"#42": SubscribeResult()}, ping=25, pong=True),
            ),
            '{"id":1,"connect":{"client":"c","version":"v","subs":{"#42":{}},"ping":25,"pong":true}}',
        ),
        (
            Reply(
                3,
                SubscribeResult(
                    recoverable=True,
                    epoch="e",
                    publications=[Publication(b'{"a":\n1}', offset=2**64 - 1)],
                    recovered=True,
                    positioned=True,
                    was_recovering=True,
                ),
            ),
            '{"id":3,"subscribe":{"recoverable":true,"epoch":"e","publications":[{"data":{"a":1},'
            '"offset":18446744073709551615}],"recovered":true,"positioned":true,'
            '"was_recovering":true}}',
        ),
        (Reply(4, PublishResult()), '{"id":4,"publish":{}}'),
        (Reply(5, PresenceResult()), '{"id":5,"presence":{"presence":{}}}'),
        (
            Reply(5, PresenceResult({"c": ClientInfo()})),
            '{"id":5,"presence":{"presence":{"c":{"user":"","client":""}}}}',
        ),
        (
            Reply(6, PresenceStatsResult()),
            '{"id":6,"presence_stats":{"num_clients":0,"num_users":0}}',
        ),
        (Reply(7, HistoryResult()), '{"id":7,"history":{"publications":[],"epoch":"","offset":0}}'),
        (
            Reply(push=Push(Join(ClientInfo("u", "c", b'{"n":1}')), "ch")),
            '{"push":{"channel":"ch","join":{"info":{"user":"u","client":"c","conn_info":{"n":1}}}}}',
        ),
        (
            Reply(push=Push(UnsubscribeCode.SERVER.push, "ch")),
            '{"push":{"channel":"ch","unsubscribe":{"code":2000,"reason":"server unsubscribe"}}}',
        ),
        (
            Reply(push=Push(Disconnect(3001, "shutdown"))),
            '{"push":{"disconnect":{"code":3001,"reason":"shutdown"}}}',
        ),
    ],
)
def test_json_replies(reply: Reply, expected: str) -> None:
    """JSON as the SDKs expect it: what is at its default is left out, but for a few fields."""
    assert JSON.encode([reply]).decode() == expected


def test_a_protobuf_command_of_the_documentation() -> None:
    """The same command in both encodings, as the documentation shows it."""
    command = Command(2, SubscribeRequest("chat:42"))
    frame = bytes.fromhex("0d 08022a090a07636861743a3432")
    assert PROTOBUF.encode_commands([command]) == frame
    assert PROTOBUF.decode(frame) == [command]
    assert JSON.encode_commands([command]) == b'{"id":2,"subscribe":{"channel":"chat:42"}}'


@both
def test_ping_is_an_empty_reply_and_pong_an_empty_command(codec: Codec) -> None:
    """They are one and the same bytes."""
    assert codec.encode([PING]) == codec.ping
    [pong] = codec.decode(codec.ping)
    assert pong.is_pong
    assert [c.binary for c in CODECS] == [False, True]


@both
def test_publication_for_all_subscribers(codec: Codec) -> None:
    """It is encoded once, and several of them together are one valid frame."""
    publication = Publication(b'{"a":1}', ClientInfo("u", "c"), 7, {"k": "v"}, time=5)
    part = codec.encode_publication("ch", publication)
    assert codec.decode_replies(codec.join([part, codec.ping, part])) == [
        Reply(push=Push(publication, "ch")),
        PING,
        Reply(push=Push(publication, "ch")),
    ]


# Input that is not a command.


@pytest.mark.parametrize(
    "frame",
    [
        "",
        "\n",
        "{}\n\n{}",
        "{}\n\n",
        "[]",
        "null",
        "{",
        '{"id":1}',
        '{"id":1}{"id":2}',
        '{"id":1,"ping":{}}',
        '{"id":1,"method":1,"params":{}}',
        '{"id":"1","rpc":{}}',
        '{"id":-1,"rpc":{}}',
        '{"id":4294967296,"rpc":{}}',
        '{"id":1.5,"rpc":{}}',
        '{"id":1,"rpc":[]}',
        '{"connect":{},"send":{}}',
        '{"id":1,"subscribe":{}}',
        '{"id":1,"publish":{"channel":""}}',
        '{"id":1,"history":{"channel":"c","limit":2147483648}}',
        '{"id":1,"subscribe":{"channel":"c","offset":18446744073709551616}}',
        '{"id":1,"subscribe":{"channel":"c","offset":' + "1" * 5000 + "}}",
        '{"id":1,"publish":{"channel":"c","data":NaN}}',
        '{"id":1,"rpc":{"data":' + "[" * 30_000 + "]" * 30_000 + "}}",
        '{"id":1,"x":' + '{"a":' * 9_000 + "1" + "}" * 9_000 + "}",
        b'{"id":1,"rpc":{"data":"\xff"}}',
        '{"id":1,"rpc":{"data":"\ud800"}}',
    ],
    ids=range(27),
)
def test_malformed_json(frame: str | bytes) -> None:
    """It ends the connection with 3501, as in the reference server."""
    with pytest.raises(ProtocolError) as caught:
        JSON.decode(frame)
    assert caught.value.disconnect is DisconnectCode.BAD_REQUEST


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\x01",
        b"\x80",
        b"\xff" * 11,
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x02\x08\x01",  # an id, no method
        b"\x04\x08\x01\x5a\x00",  # the ping of old
        b"\x06\x08\x01\x2a\x02\x0a\x00",  # no channel
        b"\x07\x08\x01\x2a\x03\x0a\x01\xff",  # a channel that is not UTF-8
        b"\x00\x02\x08",
    ],
    ids=range(10),
)
def test_malformed_protobuf(frame: bytes) -> None:
    """It ends the connection with 3501, as in the reference server."""
    with pytest.raises(ProtocolError) as caught:
        PROTOBUF.decode(frame)
    assert caught.value.disconnect is DisconnectCode.BAD_REQUEST


def test_the_first_of_two_methods_counts() -> None:
    """Which is first is the reference server's matter, not the frame's."""
    [command] = JSON.decode('{"refresh":{"token":"t"},"rpc":{"method":"m"},"send":{},"id":1}')
    assert command.request == RPCRequest(method="m")
    both = client_pb2.Command(id=1, send=client_pb2.SendRequest(), rpc=client_pb2.RPCRequest())
    frame = both.SerializeToString()
    [command] = PROTOBUF.decode(bytes([len(frame)]) + frame)
    assert command.request == RPCRequest()


@both
def test_limits(codec: Codec) -> None:
    """Too many commands end the connection; a channel name too long is answered with an error."""
    limited = type(codec)(max_commands=2, max_channel=4)
    with pytest.raises(ProtocolError) as caught:
        limited.decode(codec.encode_commands([Command()] * 3))
    assert caught.value.disconnect is DisconnectCode.TOO_MANY_REQUESTS
    requests = [Command(1, PublishRequest("åä")), Command(2, PublishRequest("åäö"))]
    good, refused = limited.decode(codec.encode_commands(requests))
    assert good.refusal is None
    assert refused.refusal == ErrorCode.BAD_REQUEST.error


# Payloads between the encodings.


def test_a_payload_that_is_not_json_does_not_reach_json_clients() -> None:
    """It ends their connection with 3506, as in the reference server; Protobuf clients get it."""
    publication = Publication(b"\x00\xff")
    assert PROTOBUF.encode_publication("ch", publication)
    with pytest.raises(ProtocolError) as caught:
        JSON.encode_publication("ch", publication)
    assert caught.value.disconnect is DisconnectCode.INAPPROPRIATE_PROTOCOL


@pytest.mark.parametrize(
    "value", [r'"\ud83d"', r'["\ude00\ud83d\ude00"]', r'{"\ud83d":1}', "1e999", "-" + "1" * 400]
)
@pytest.mark.parametrize("method", ["connect", "publish", "rpc", "unknown"])
def test_json_that_parsers_read_differently_is_refused(value: str, method: str) -> None:
    """Half an emoji, or a number that no double holds: the command is answered with an error."""
    request = "publish" if method == "unknown" else method
    fields = f'"channel":"c","{"x" if method == "unknown" else "data"}":{value}'
    [refused, other] = JSON.decode(
        f'{{"id":7,"{request}":{{{fields}}}}}\n{{"id":8,"publish":{{"channel":"c","data":1}}}}'
    )
    assert (refused.id, refused.refusal) == (7, ErrorCode.BAD_REQUEST.error)
    assert other == Command(8, PublishRequest("c", b"1"))


def test_a_whole_pair_is_text_like_any_other() -> None:
    """Neither is an escaped backslash the beginning of half a pair."""
    [command] = JSON.decode(r'{"id":1,"publish":{"channel":"c","data":["\ud83d\ude00","\\ud83d"]}}')
    assert command.refusal is None
    assert isinstance(command.request, PublishRequest)
    assert command.request.data == rb'["\ud83d\ude00","\\ud83d"]'


# centrifuge-python, unmodified.


def test_schema_is_that_of_the_sdk() -> None:
    """Every field has the SDK's number, type and label; only a filter is kept shut.

    The SDK knows no kinds of channels, and so no `type`; the JavaScript SDK does.
    """

    def facts(field: FieldDescriptor) -> tuple[Any, ...]:
        inner = field.message_type.name if field.message_type else None
        return field.number, field.type, field.is_repeated, inner

    ours = client_pb2.DESCRIPTOR.message_types_by_name
    assert set(ours) == {cls.__name__ for cls in MESSAGES} | {"Command", "Reply", "Push"}
    for name, message in ours.items():
        theirs = sdk.DESCRIPTOR.message_types_by_name[name].fields_by_name
        for field in message.fields:
            if field.name not in {"tf", "type"}:
                assert facts(field) == facts(theirs[field.name]), (name, field.name)


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_messages_are_those_of_the_schema(kind: type) -> None:
    """The dataclasses have the fields of the schema, no more, no less."""
    schema = client_pb2.DESCRIPTOR.message_types_by_name[kind.__name__]
    assert set(field_types(kind)) == {field.name for field in schema.fields}


@given(commands(PROTOBUF))
def test_commands_pass_through_the_sdk(sent: list[Command]) -> None:
    """The SDK's classes read what we write, lose nothing, and we read what they write."""
    frame = PROTOBUF.encode_commands(sent)
    again = b""
    for part in split(frame):
        body = sdk.Command.FromString(part).SerializeToString()
        again += sdk_codecs._varint_encode(len(body)) + body
    assert PROTOBUF.decode(again) == sent


@given(replies(PROTOBUF))
def test_replies_pass_through_the_sdk(sent: list[Reply]) -> None:
    """The same for replies, and the SDK's own decoder finds as many."""
    frame = PROTOBUF.encode(sent)
    again = b""
    for part in split(frame):
        body = sdk.Reply.FromString(part).SerializeToString()
        again += sdk_codecs._varint_encode(len(body)) + body
    assert PROTOBUF.decode_replies(again) == sent
    assert len(sdk_codecs._ProtobufCodec.decode_replies(frame)) == len(sent)


@pytest.mark.parametrize(
    ("codec", "theirs"),
    [(JSON, sdk_codecs._JsonCodec), (PROTOBUF, sdk_codecs._ProtobufCodec)],
    ids=["json", "protobuf"],
)
def test_the_codecs_of_the_sdk(codec: Codec, theirs: Any) -> None:
    """We decode messages that the SDK encodes, and the other way round."""
    subscribe = {"channel": "c", "recover": True, "epoch": "e", "offset": 3, "flag": 1}
    frame = theirs.encode_commands([{"id": 1, "subscribe": subscribe}, {}])
    assert codec.decode(frame) == [
        Command(1, SubscribeRequest("c", "", True, "e", 3, flag=1)),
        Command(),
    ]
    sent = [Reply(1, SubscribeResult(recoverable=True, epoch="e")), PING]
    data = codec.encode(sent)
    assert theirs.decode_replies(data.decode() if codec is JSON else data) == [
        {"id": 1, "subscribe": {"recoverable": True, "epoch": "e"}},
        {},
    ]


def split(frame: bytes) -> list[bytes]:
    """Messages of a frame, as the SDK takes it apart."""
    parts, position = [], 0
    while position < len(frame):
        size, position = sdk_codecs._varint_decode(frame, position)
        parts.append(frame[position : position + size])
        position += size
    return parts


# Codes and negotiation.


def test_codes() -> None:
    """Codes are unique, each has a reason, and SDKs come back after the right ones."""
    for table in (ErrorCode, DisconnectCode, UnsubscribeCode):
        codes = [entry.code for entry in table]
        assert len(codes) == len(set(codes))
    assert (DisconnectCode.NO_PONG.code, DisconnectCode.NO_PONG.reason) == (3012, "no pong")
    assert UnsubscribeCode.INSUFFICIENT_STATE.push == Unsubscribe(2500, "insufficient state")
    assert [code.code for code in ErrorCode if code.temporary] == [100, 111, 113]
    final = [code.name for code in DisconnectCode if not reconnects(code.code)]
    assert final[0] == "INVALID_TOKEN"
    assert len(final) == 10
    custom = (1000, 1009, 1012, 3499, 3500, 3999, 4000, 4499, 4500, 4999, 5000)
    assert [code for code in custom if not reconnects(code)] == [1009, 3500, 3999, 4500, 4999]


@pytest.mark.parametrize(
    ("offered", "query", "expected"),
    [
        ([], "", ("json", None, False)),
        (["centrifuge-json"], "", ("json", "centrifuge-json", False)),
        (["centrifuge-protobuf"], "", ("protobuf", "centrifuge-protobuf", False)),
        (
            ["chat", "centrifuge-protobuf", "centrifuge-json"],
            "",
            ("protobuf", "centrifuge-protobuf", False),
        ),
        (["chat"], "format=json", ("json", None, False)),
        ([], "format=protobuf", ("protobuf", None, False)),
        ([], "a=b&cf_protocol=protobuf", ("protobuf", None, False)),
        ([], "cf_ws_frame_ping_pong=true", ("json", None, True)),
        ([], "format=%ff&;=&=", ("json", None, False)),
    ],
)
def test_negotiation(
    offered: list[str], query: str, expected: tuple[str, str | None, bool]
) -> None:
    """JSON unless the subprotocol or the URL asks for Protobuf."""
    chosen = negotiate(offered, query)
    assert (chosen.encoding, chosen.subprotocol, chosen.frame_ping_pong) == expected


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_a_message_that_is_a_pong_alone_is_known_without_decoding(codec: Codec) -> None:
    """Each of `pongs` is one pong, and none is longer than `LONGEST_PONG`."""
    assert codec.ping in codec.pongs
    for message in codec.pongs:
        assert len(message) <= LONGEST_PONG
        (command,) = codec.decode(message)
        assert command.is_pong
