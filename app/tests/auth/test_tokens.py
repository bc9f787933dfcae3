"""Tokens and origins."""

import base64
import hmac
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, RSAAlgorithm
from structlog.testing import capture_logs

from tests.support.tokens import RSA_KEY, RSA_STRANGER, by_hand, pem
from wsfleet.auth.tokens import (
    Grant,
    TokenExpiredError,
    TokenInvalidError,
    TokenMismatchError,
    Verifier,
    origin_allowed,
    verifiers,
)
from wsfleet.config.file import ConfigError
from wsfleet.config.schema import ChannelOptions, ClientConfig
from wsfleet.config.token import TokenConfig

KEY = "a secret of more than thirty-two bytes, and of more than sixty-four too"
OTHER_KEY = KEY[::-1]
# JSON by its grammar, of which parsers make different things.
AMBIGUOUS = [r'"\ud83d"', r'"a\udc00\ud83d"', "1e400", "-1e309", "1" * 400]
NOW = 1_800_000_000
EC_KEYS = {
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "ES384": ec.generate_private_key(ec.SECP384R1()),
    "ES512": ec.generate_private_key(ec.SECP521R1()),
}
SHORT_RSA = """\
-----BEGIN PUBLIC KEY-----
MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDf7nZ6s2SBHqTINXsFG30Um2U1
4UQalpnb2IcgZBlIUwCH7nghE0oeZxVYIEGtO2y4LdeBfHI4faS6gvwAAm9fTrZv
HKsaGvviMe9TZCmBBNdSJIlcSqclpX2gk0UW4trCMam+DZdGGW2iqnlsBcUCovG+
U6ebbEzrBPMQdpzGgwIDAQAB
-----END PUBLIC KEY-----
"""  # 1024 bits
EC_STRANGER = ec.generate_private_key(ec.SECP256R1())
CLAIMS = ["sub", "exp", "nbf", "iat", "expire_at", "aud", "iss", "info", "b64info", "meta",
          "channels", "subs", "channel"]  # fmt: skip


def verifier(**config: Any) -> Verifier:
    """A verifier with `KEY`."""
    return Verifier(TokenConfig.model_validate({"hmac_secret_key": KEY} | config))


def signed(claims: Any, key: str = KEY, algorithm: str = "HS256", **headers: Any) -> str:
    """A token with these claims."""
    payload = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    return jwt.PyJWS().encode(payload, key, algorithm, headers)


def jwk(private: Any, **members: str) -> dict[str, Any]:
    """The public half of a key, as a member of a key set."""
    kind = RSAAlgorithm if isinstance(private, rsa.RSAPrivateKey) else ECAlgorithm
    return kind.to_jwk(private.public_key(), as_dict=True) | members


def connect(claims: Any, **config: Any) -> Any:
    """Return the verified connection token with these claims."""
    return verifier(**config).verify_connection(signed(claims), NOW)


def subscribe(claims: dict[str, Any], **config: Any) -> Any:
    """Return the verified subscription token with these claims."""
    return verifier(**config).verify_subscription(signed({"channel": "c"} | claims), NOW)


# Signatures


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
def test_three_algorithms_are_taken(algorithm: str) -> None:
    """Centrifugo's with a shared secret."""
    token = signed({"sub": "7"}, algorithm=algorithm)
    assert verifier().verify_connection(token, NOW).user == "7"


def test_another_key_is_refused() -> None:
    """And so is a signature that was changed or cut off."""
    token = signed({"sub": "7"})
    head, claims, signature = token.split(".")
    forged = signed({"sub": "8"}).split(".")[1]
    for bad in (
        signed({"sub": "7"}, OTHER_KEY),
        f"{head}.{forged}.{signature}",
        f"{head}.{claims}.",
        f"{head}.{claims}",
        f"{head}.{claims}.{signature[:-4]}",
    ):
        with pytest.raises(TokenInvalidError):
            verifier().verify_connection(bad, NOW)


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "", "RS256", "ES256", None, 1, []])
def test_a_token_does_not_choose_its_algorithm(algorithm: Any) -> None:
    """`none` above all; neither without a signature nor with one that our key would make."""
    header = {"typ": "JWT", "alg": algorithm}
    for signature in (b"", base64.urlsafe_b64decode(signed({}).split(".")[2] + "=")):
        with pytest.raises(TokenInvalidError, match=r"alg|signature|segments|padding|Signature"):
            verifier().verify_connection(by_hand(header, {"sub": "7"}, signature), NOW)


def test_a_token_without_an_algorithm_is_refused() -> None:
    """There is no default."""
    with pytest.raises(TokenInvalidError):
        verifier().verify_connection(by_hand({"typ": "JWT"}, {"sub": "7"}), NOW)


def test_a_public_key_is_no_shared_secret() -> None:
    """The classic confusion: a token that is signed with the text of a public key."""
    with pytest.raises(ConfigError, match=r"client\.token\.hmac_secret_key: The specified"):
        verifier(hmac_secret_key=pem(RSA_KEY))
    with pytest.raises(ConfigError, match=r"client\.token\.hmac_previous_secret_key"):
        verifier(hmac_previous_secret_key=pem(RSA_KEY))


def test_a_token_of_another_kind_is_refused() -> None:
    """Signed with RSA, by whomever: no key of ours allows it."""
    with pytest.raises(TokenInvalidError, match="alg value is not allowed"):
        verifier().verify_connection(jwt.encode({"sub": "7"}, RSA_KEY, "RS256"), NOW)


@pytest.mark.parametrize("algorithm", ["RS256", "RS384", "RS512", "ES256", "ES384", "ES512"])
def test_public_keys_check_tokens(algorithm: str) -> None:
    """RSA with any of its digests, ECDSA with the one of the key's curve; by PEM or by JWKS."""
    private = EC_KEYS.get(algorithm, RSA_KEY)
    name = "ecdsa_public_key" if algorithm in EC_KEYS else "rsa_public_key"
    public = Verifier(TokenConfig.model_validate({name: pem(private)}))
    assert public.verify_connection(jwt.encode({"sub": "7"}, private, algorithm), NOW).user == "7"
    stranger = EC_STRANGER if algorithm in EC_KEYS else RSA_STRANGER
    if algorithm in ("RS256", "ES256"):
        with pytest.raises(TokenInvalidError, match="Signature"):
            public.verify_connection(jwt.encode({"sub": "7"}, stranger, algorithm), NOW)


@pytest.mark.parametrize("name", ["rsa_public_key", "ecdsa_public_key"])
def test_a_public_key_checks_nothing_but_its_own_algorithms(name: str) -> None:
    """Neither `none` nor an HMAC that is made with the key's text, which everybody may have."""
    text = pem(RSA_KEY if name == "rsa_public_key" else EC_KEYS["ES256"])
    public = Verifier(TokenConfig.model_validate({name: text}))
    for algorithm in ("none", "HS256", "HS512", "PS256", "ES384", "EdDSA"):
        head = by_hand({"alg": algorithm}, {"sub": "7"}).rpartition(".")[0]
        mac = hmac.digest(text.encode(), head.encode(), "sha256")
        forged = f"{head}.{base64.urlsafe_b64encode(mac).decode().rstrip('=')}"
        for token in (f"{head}.", forged):
            with pytest.raises(TokenInvalidError, match="alg value is not allowed"):
                public.verify_connection(token, NOW)


def test_secret_and_public_keys_side_by_side() -> None:
    """Each kind of token meets the key of its kind."""
    keys = {"rsa_public_key": pem(RSA_KEY), "ecdsa_public_key": pem(EC_KEYS["ES256"])}
    both = verifier(**keys)
    for token in (
        signed({"sub": "7"}),
        jwt.encode({"sub": "7"}, RSA_KEY, "RS384"),
        jwt.encode({"sub": "7"}, EC_KEYS["ES256"], "ES256"),
    ):
        assert both.verify_connection(token, NOW).user == "7"


def test_a_key_set_is_a_file(tmp_path: Path) -> None:
    """`kid` chooses the key; entries that are not signature keys of a known kind are ignored."""
    file = tmp_path / "jwks.json"
    file.write_text(json.dumps({"keys": [
        jwk(RSA_KEY, kid="one", use="sig"),
        jwk(EC_KEYS["ES256"], kid="two", alg="ES256"),
        jwk(RSA_STRANGER, kid="enc", use="enc"),
        jwk(RSA_STRANGER, kid="odd", alg="PS256"),
        {"kty": "OKP", "crv": "Ed25519", "x": "AA", "kid": "three"},
        {"kty": "oct", "k": "A" * 44, "kid": "secret"},
    ]}))  # fmt: skip
    keys = Verifier(TokenConfig(jwks_file=str(file)))

    def user(key: Any, algorithm: str, **headers: str) -> str:
        token = jwt.encode({"sub": "7"}, key, algorithm, headers)
        return keys.verify_connection(token, NOW).user

    assert user(RSA_KEY, "RS256", kid="one") == "7"
    assert user(RSA_KEY, "RS512") == "7"
    assert user(EC_KEYS["ES256"], "ES256", kid="two") == "7"
    with pytest.raises(TokenInvalidError, match="kid not known"):
        user(RSA_KEY, "RS256", kid="two")
    for kid in ("one", "enc", "odd"):
        with pytest.raises(TokenInvalidError, match=r"kid not known|Signature"):
            user(RSA_STRANGER, "RS256", kid=kid)
    with pytest.raises(TokenInvalidError, match="alg value is not allowed"):
        keys.verify_connection(signed({"sub": "7"}, "A" * 44, kid="secret"), NOW)


@pytest.mark.parametrize(
    ("content", "mistake"),
    [
        (None, "cannot be read"),
        ("{", "not a JSON Web Key Set"),
        ("[]", "not a JSON Web Key Set"),
        ('{"keys": [1]}', "not a JSON Web Key Set"),
        ('{"keys": [{"kty": "RSA", "n": "AQAB"}]}', "not a JSON Web Key Set"),
        ('{"keys": []}', "no RSA or EC key"),
        ('{"keys": [{"kty": "RSA", "d": "AQAB"}]}', "holds a private key"),
    ],
)
def test_an_invalid_key_set_is_an_error(tmp_path: Path, content: str | None, mistake: str) -> None:
    """The node does not start with a file that it cannot use."""
    file = tmp_path / "jwks.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=rf"client\.token\.jwks_file: .*{mistake}"):
        Verifier(TokenConfig(jwks_file=str(file)))


def test_a_key_set_is_read_again(tmp_path: Path) -> None:
    """A key that was added is good at once, and one that was taken out no longer."""
    file = tmp_path / "jwks.json"
    old, new = jwk(RSA_KEY, kid="old"), jwk(EC_KEYS["ES256"], kid="new")
    file.write_text(json.dumps({"keys": [old]}))
    keys = verifier(jwks_file=str(file))
    by_old = jwt.encode({"sub": "1"}, RSA_KEY, "RS256", {"kid": "old"})
    by_new = jwt.encode({"sub": "2"}, EC_KEYS["ES256"], "ES256", {"kid": "new"})
    assert keys.verify_connection(by_old, NOW).user == "1"
    with pytest.raises(TokenInvalidError):
        keys.verify_connection(by_new, NOW)
    file.write_text(json.dumps({"keys": [old, new]}))
    assert keys.verify_connection(by_old, NOW).user == "1"
    assert keys.verify_connection(by_new, NOW).user == "2"
    file.write_text(json.dumps({"keys": [new]}))
    assert keys.verify_connection(by_new, NOW).user == "2"
    with pytest.raises(TokenInvalidError):
        keys.verify_connection(by_old, NOW)
    assert keys.verify_connection(signed({"sub": "3"}), NOW).user == "3"


@pytest.mark.parametrize("content", [None, "{", '{"keys": []}'])
def test_a_key_set_that_becomes_unusable_changes_nothing(
    tmp_path: Path, content: str | None
) -> None:
    """The old keys stay until the file has valid ones."""
    file = tmp_path / "jwks.json"
    file.write_text(json.dumps({"keys": [jwk(RSA_KEY)]}))
    keys = Verifier(TokenConfig(jwks_file=str(file)))
    token = jwt.encode({"sub": "7"}, RSA_KEY, "RS256")
    file.unlink() if content is None else file.write_text(content)
    assert keys.verify_connection(token, NOW).user == "7"
    file.write_text(json.dumps({"keys": [jwk(RSA_STRANGER)]}))
    with pytest.raises(TokenInvalidError):
        keys.verify_connection(token, NOW)


def test_an_unsuitable_public_key_is_an_error() -> None:
    """A key under the wrong name, a private key, one that is too short, an unknown curve."""
    private = RSA_KEY.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()
    for config, mistake in (
        ({"rsa_public_key": pem(EC_KEYS["ES256"])}, "not a public key of this kind"),
        ({"ecdsa_public_key": pem(RSA_KEY)}, "not a public key of this kind"),
        ({"rsa_public_key": private}, "not a public key of this kind"),
        ({"rsa_public_key": "x"}, "not a public key of this kind"),
        ({"rsa_public_key": SHORT_RSA}, "2048 bits"),
        ({"ecdsa_public_key": pem(ec.generate_private_key(ec.SECP256K1()))}, "the curve must be"),
    ):
        with pytest.raises(ConfigError, match=mistake) as caught:
            Verifier(TokenConfig.model_validate(config))
        assert "BEGIN PRIVATE" not in str(caught.value)


def test_extensions_that_are_not_understood_are_refused() -> None:
    """RFC 7515, section 4.1.11."""
    token = signed({"sub": "7"}, crit=["exp"], exp=1)
    with pytest.raises(TokenInvalidError, match="critical"):
        verifier().verify_connection(token, NOW)


def test_without_a_key_tokens_are_refused_with_the_reason() -> None:
    """An empty secret would accept what anybody signs with an empty one."""
    nothing = Verifier(TokenConfig())
    for verify in (nothing.verify_connection, nothing.verify_subscription):
        with pytest.raises(
            TokenInvalidError, match=r"no key .* set client\.token\.hmac_secret_key"
        ):
            verify(signed({"channel": "c"}), NOW)


def test_the_previous_key_is_good_until_it_ends() -> None:
    """So that clients can come over; the current one is good throughout."""
    old = signed({"sub": "7"}, OTHER_KEY)
    both = verifier(hmac_previous_secret_key=OTHER_KEY)
    assert both.verify_connection(old, NOW).user == "7"
    assert both.verify_connection(signed({"sub": "7"}), NOW).user == "7"
    ending = verifier(hmac_previous_secret_key=OTHER_KEY, hmac_previous_secret_key_valid_until=NOW)
    assert ending.verify_connection(old, NOW).user == "7"
    assert ending.verify_connection(signed({"sub": "7"}), NOW + 1).user == "7"
    with pytest.raises(TokenInvalidError, match="Signature"):
        ending.verify_connection(old, NOW + 1)


def test_a_short_key_works_with_a_warning() -> None:
    """Centrifugo takes it; the log says that it should be longer, once, and not what it is."""
    made_without_a_library = (
        "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiI3In0."
        "OEVWsYhf6QSMvOl-CaZkrRP2QlHfRILgQZX8HUG8TMo"
    )
    with capture_logs() as logs:
        short = verifier(hmac_secret_key="tiny-one")  # noqa: S106
        verifier(hmac_secret_key="k" * 31, hmac_previous_secret_key="k" * 32)
    warned = [("secret_too_short", "client.token.hmac_secret_key")] * 2
    assert [(line["event"], line["key"]) for line in logs] == warned
    assert "tiny-one" not in str(logs)
    assert short.verify_connection(made_without_a_library, NOW).user == "7"


@given(st.text() | st.builds(lambda parts: ".".join(parts), st.lists(st.text(), max_size=4)))
def test_any_text_is_a_token_or_refused(text: str) -> None:
    """No text crashes."""
    with pytest.raises(TokenInvalidError):
        verifier().verify_connection(text, NOW)


def test_half_a_surrogate_pair_is_refused() -> None:
    """JSON can spell it, UTF-8 cannot."""
    with pytest.raises(TokenInvalidError):
        verifier().verify_connection("\ud800.a.b", NOW)


@pytest.mark.parametrize("claim", ["sub", "info", "meta", "b64info", "x", "subs", "key"])
@pytest.mark.parametrize("value", AMBIGUOUS)
def test_json_that_parsers_read_differently_is_refused(claim: str, value: str) -> None:
    """Wherever it is in the claims, and in what `b64info` encodes; the log says what it is."""
    encoded = base64.b64encode(value.encode()).decode()
    claims = {
        "b64info": f'"b64info":"{encoded}"',
        "subs": f'"subs":{{"c":{{"data":[{value}]}}}},"data":[{value}]',
        "key": f'"info":{{{value}:1}}' if value.startswith('"') else f'"exp":{value}',
    }.get(claim, f'"{claim}":{value}')
    with pytest.raises(TokenInvalidError, match=r"surrogate|infinity"):
        verifier().verify_connection(signed(f"{{{claims}}}".encode()), NOW)
    with pytest.raises(TokenInvalidError, match=r"surrogate|infinity"):
        verifier().verify_subscription(signed(f'{{"channel":"c",{claims}}}'.encode()), NOW)


@pytest.mark.parametrize("claim", ["info", "meta", "data"])
def test_a_payload_is_kept_byte_for_byte(claim: str) -> None:
    """Byte for byte: no digit is lost, and no key that is there twice."""
    payload = b'{"b": 1.10000000000000000555, "a":[12345678901234567890], "b":"\\u00fc"}'
    claims = b'{"channel":"c","%b": %b }' % (claim.encode(), payload)
    if claim == "data":
        taken = verifier().verify_subscription(signed(claims), NOW).grant.data
    else:
        token = verifier().verify_connection(signed(claims.replace(b"channel", b"x")), NOW)
        taken = getattr(token, claim)
    assert taken == payload


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(
    st.dictionaries(
        st.sampled_from(CLAIMS),
        JSON,
    )
    | JSON
)
def test_any_signed_claims_are_taken_or_refused(claims: Any) -> None:
    """No claims crash, and what is taken is well-formed."""
    try:
        token = connect(claims)
    except (TokenInvalidError, TokenExpiredError):
        return
    assert isinstance(token.user, str)
    assert token.expire_at >= 0
    if token.meta is not None:
        json.loads(token.meta)


@pytest.mark.parametrize(
    "payload", [b"", b"{", b"[]", b'"a"', b"\xff", b'{"meta":NaN}', b'{"meta":1e999}',
                b'{"exp":Infinity}', b"[" * 10_000],
)  # fmt: skip
def test_what_is_no_json_object_is_refused(payload: bytes) -> None:
    """A signature alone does not make claims."""
    with pytest.raises(TokenInvalidError):
        connect(payload)


# Claims


def test_a_connection_token_names_the_user() -> None:
    """User, information, and the time until which."""
    token = connect({"sub": "7", "exp": NOW + 60, "iat": NOW + 9, "info": {"n": [1, "ü"]},
                     "meta": {"a": 12345678901234567890123}})  # fmt: skip
    assert token.user == "7"
    assert token.expire_at == NOW + 60
    assert token.info == rb'{"n": [1, "\u00fc"]}'
    assert token.meta == b'{"a": 12345678901234567890123}'
    assert token.subs == {}


def test_claims_may_be_left_out_or_null() -> None:
    """A client without a user that never expires."""
    for claims in ({}, dict.fromkeys(CLAIMS)):
        token = connect(claims)
        assert (token.user, token.expire_at) == ("", 0)
        assert (token.info, token.meta, token.subs) == (None, None, {})


@pytest.mark.parametrize(
    "claims",
    [{"sub": 7}, {"exp": "9999999999"}, {"exp": True}, {"expire_at": 1.5}, {"aud": 1},
     {"aud": [1]}, {"channels": "c"}, {"channels": [1]}, {"subs": ["c"]}, {"subs": {"c": 1}},
     {"b64info": "!"}, {"b64info": 1}, {"subs": {"c": {"b64data": "a"}}},
     {"subs": {"c": {"override": {"presence": True}}}}],
)  # fmt: skip
def test_claims_of_a_wrong_form_are_refused(claims: dict[str, Any]) -> None:
    """Nothing is guessed."""
    with pytest.raises(TokenInvalidError, match="claims"):
        connect(claims)


@pytest.mark.parametrize("take", [connect, subscribe])
def test_a_token_has_its_time(take: Callable[..., Any]) -> None:
    """From after `nbf` until before `exp`, to the second."""
    take({"exp": NOW + 1, "nbf": NOW - 1})
    take({"exp": NOW + 0.5})
    for claims in ({"exp": NOW}, {"exp": NOW - 1}, {"exp": 0}, {"exp": -1}, {"nbf": NOW},
                   {"nbf": NOW + 1}):  # fmt: skip
        with pytest.raises(TokenExpiredError):
            take(claims)


def test_the_clock_is_the_systems() -> None:
    """Where the caller gives no time."""
    soon, past = time.time() + 60, time.time() - 60
    assert verifier().verify_connection(signed({"exp": soon})).expire_at == int(soon)
    assert verifier().verify_subscription(signed({"exp": soon, "channel": "c"})).channel == "c"
    with pytest.raises(TokenExpiredError):
        verifier().verify_connection(signed({"exp": past}))
    with pytest.raises(TokenExpiredError):
        verifier().verify_subscription(signed({"exp": past, "channel": "c"}))


@pytest.mark.parametrize("take", [connect, subscribe])
@pytest.mark.parametrize(
    ("claims", "expire_at"),
    [({}, 0), ({"exp": NOW + 60}, NOW + 60), ({"exp": NOW + 60.5}, NOW + 60),
     ({"exp": NOW + 60, "expire_at": NOW + 600}, NOW + 600),
     ({"exp": NOW + 60, "expire_at": 0}, 0), ({"exp": NOW + 60, "expire_at": -1}, 0)],
)  # fmt: skip
def test_a_connection_may_outlast_its_token(
    take: Callable[..., Any], claims: dict[str, Any], expire_at: int
) -> None:
    """`expire_at` overrules `exp` for the connection; 0 is never."""
    assert take(claims).expire_at == expire_at


@pytest.mark.parametrize("take", [connect, subscribe])
def test_audience_and_issuer_must_match_where_they_are_set(take: Callable[..., Any]) -> None:
    """A list of audiences needs ours among them; unset, the claims mean nothing."""
    take({"aud": "somebody", "iss": "anybody"})
    for claim, key in (("aud", "audience"), ("iss", "issuer")):
        take({claim: "me"}, **{key: "me"})
        for wrong in ({}, {claim: "m"}, {claim: "me2"}):
            with pytest.raises(TokenInvalidError, match="another"):
                take(wrong, **{key: "me"})
    take({"aud": ["you", "me"]}, audience="me")
    with pytest.raises(TokenInvalidError, match="audience"):
        take({"aud": ["you"]}, audience="me")


def test_a_subscription_token_does_not_connect_and_needs_a_channel() -> None:
    """A token for one channel must not open all others."""
    with pytest.raises(TokenInvalidError, match="does not connect"):
        connect({"sub": "7", "channel": "c"})
    with pytest.raises(TokenInvalidError, match="channel is missing"):
        verifier().verify_subscription(signed({"sub": "7"}), NOW)


def test_base64_goes_before_json() -> None:
    """For clients of Protobuf, whose bytes are any."""
    encoded = base64.b64encode(b"\xff\x00").decode()
    assert connect({"info": {"a": 1}, "b64info": encoded}).info == b"\xff\x00"
    grant = subscribe({"info": 1, "b64info": encoded, "data": 1, "b64data": encoded}).grant
    assert grant == Grant(info=b"\xff\x00", data=b"\xff\x00")


def test_a_token_subscribes_to_channels() -> None:
    """`subs` with options, or else `channels` by their names."""
    assert connect({"channels": ["a", "b"]}).subs == {"a": Grant(), "b": Grant()}
    subs = {
        "c": {"info": {"i": 1}, "data": [1], "override": {"presence": {"value": True}}},
        "d": {"info": None, "override": None},
    }
    token = connect({"subs": subs, "channels": ["a"]})
    assert token.subs == {
        "c": Grant(info=b'{"i": 1}', data=b"[1]", override={"presence": True}),
        "d": Grant(),
    }


def test_claims_of_a_subscription_token() -> None:
    """Channel, user, client, and options for this subscription."""
    override = {"join_leave": {"value": True}, "force_recovery": {}}
    token = subscribe(
        {"sub": "7", "client": "x", "info": {"i": 1}, "data": 2, "override": override}
    )
    assert (token.user, token.channel, token.client) == ("7", "c", "x")
    assert token.grant == Grant(
        info=b'{"i": 1}', data=b"2", override={"join_leave": True, "force_recovery": False}
    )


@pytest.mark.parametrize(
    "key",
    ["presence", "join_leave", "force_push_join_leave", "force_positioning", "force_recovery"],
)
def test_a_token_overrides_the_channels_options(key: str) -> None:
    """Only that option, on or off; options that need history stay off without it."""
    history = ChannelOptions.model_validate({"history_size": 1, "history_ttl": "1s"})
    grant = subscribe({"override": {key: {"value": True}}}).grant
    assert grant.override == {key: True}
    assert grant.applied_to(history) == history.model_copy(update={key: True})
    off = subscribe({"override": {key: {"value": False}}}).grant
    assert off.applied_to(history.model_copy(update={key: True})) == history
    without = grant.applied_to(ChannelOptions())
    assert getattr(without, key) is (key not in ("force_positioning", "force_recovery"))
    assert Grant().applied_to(history) is history


# Whose token it is


def test_a_connection_is_refreshed_with_its_own_users_token() -> None:
    """Another's is refused."""
    token = connect({"sub": "7"})
    token.check(user="7")
    with pytest.raises(TokenMismatchError, match="user '7', not '8'"):
        token.check(user="8")


def test_a_subscription_token_is_good_for_its_channel_user_and_client() -> None:
    """For any client where it names none."""
    mine = {"channel": "c", "user": "7", "client": "x"}
    subscribe({"sub": "7"}).check(**mine)
    subscribe({"sub": "7", "client": "x"}).check(**mine)
    for claims, what in (
        ({"sub": "7", "channel": "d"}, "channel"),
        ({"sub": "8"}, "user"),
        ({}, "user"),
        ({"sub": "7", "client": "y"}, "client"),
    ):
        with pytest.raises(TokenMismatchError, match=what):
            subscribe(claims).check(**mine)


def test_subscription_tokens_may_have_a_key_of_their_own() -> None:
    """Only where it is enabled; then the other's is not taken."""
    tokens = {"token": {"hmac_secret_key": KEY}}
    own = {"hmac_secret_key": OTHER_KEY}
    claims = {"sub": "7", "channel": "c"}
    for config, key in (
        (tokens, KEY),
        (tokens | {"subscription_token": own}, KEY),
        (tokens | {"subscription_token": own | {"enabled": True}}, OTHER_KEY),
    ):
        connection, subscription = verifiers(ClientConfig.model_validate(config))
        assert connection.verify_connection(signed({"sub": "7"}), NOW).user == "7"
        assert subscription.verify_subscription(signed(claims, key), NOW).user == "7"
        wrong = KEY if key == OTHER_KEY else OTHER_KEY
        with pytest.raises(TokenInvalidError, match="Signature"):
            subscription.verify_subscription(signed(claims, wrong), NOW)
    nothing = {"subscription_token": {"enabled": True}}
    with pytest.raises(TokenInvalidError, match=r"set client\.subscription_token\.hmac_"):
        verifiers(ClientConfig.model_validate(nothing))[1].verify_subscription(signed(claims), NOW)


# Origins


@pytest.mark.parametrize(
    ("origin", "patterns", "allowed"),
    [
        (None, [], True),
        ("", [], True),
        ("https://a.org", [], False),
        ("https://a.org", ["*"], True),
        ("https://a.org", ["https://a.org"], True),
        ("HTTPS://A.org", ["https://a.org"], True),
        ("https://b.org", ["https://a.org", "https://b.org"], True),
        ("https://a.org.evil.com", ["https://a.org"], False),
        ("https://x.a.org", ["https://*.a.org"], True),
        ("https://a.org", ["https://*.a.org"], False),
        ("http://a.org", ["https://a.org"], False),
        ("null", ["https://a.org"], False),
    ],
)
def test_a_page_may_connect_from_the_listed_origins(
    origin: str | None, patterns: list[str], allowed: bool
) -> None:
    """A client without an Origin may connect: it is not a browser with a user's cookies."""
    assert origin_allowed(origin, patterns) is allowed
