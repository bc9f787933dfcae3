"""The keys that verify tokens; each is good for its own algorithms alone.

A token names its algorithm itself, so the key decides which ones it may be used for: the text of a
public key is never used as a shared secret, and `none` is no algorithm.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt import PyJWS
from jwt.algorithms import ECAlgorithm, HMACAlgorithm, RSAAlgorithm
from jwt.exceptions import InvalidKeyError, PyJWTError

from wsfleet.config.file import ConfigError
from wsfleet.config.token import TokenConfig

log = structlog.get_logger(__name__)

SHORTEST_SECRET = 32  # bytes: RFC 7518, section 3.2, for HS256
SHORTEST_RSA = 2048  # bits: RFC 7518, section 3.3

_HMAC = {
    "HS256": HMACAlgorithm.SHA256,
    "HS384": HMACAlgorithm.SHA384,
    "HS512": HMACAlgorithm.SHA512,
}
_RSA = {
    "RS256": RSAAlgorithm.SHA256,
    "RS384": RSAAlgorithm.SHA384,
    "RS512": RSAAlgorithm.SHA512,
}
_ECDSA = {
    "ES256": ECAlgorithm.SHA256,
    "ES384": ECAlgorithm.SHA384,
    "ES512": ECAlgorithm.SHA512,
}
_CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
"""The algorithm of each curve (RFC 7518, section 3.4)."""

PublicKey = RSAPublicKey | EllipticCurvePublicKey


@dataclass(frozen=True, slots=True)
class Key:
    """A secret or a public key.

    `until` is in Unix seconds, 0 is for ever. A key with an `id` does not verify a token that names
    another one.
    """

    material: bytes | PublicKey
    algorithms: tuple[str, ...]
    id: str = ""
    until: int = 0

    def may_have_signed(self, header: dict[str, Any], now: float) -> bool:
        """Return whether the key may verify a token with this header."""
        return (
            header.get("alg") in self.algorithms
            and not (self.id and "kid" in header and header["kid"] != self.id)
            and (not self.until or now <= self.until)
        )


class Keys:
    """All keys of a section of the configuration, whose path is `section`.

    A key set is read again when its file has changed. While the file is invalid, the
    previous keys stay valid.

    Raises:
        ConfigError: a key is invalid.
    """

    def __init__(self, config: TokenConfig, section: str) -> None:
        self._configured = _configured(config, section)
        self._file = config.jwks_file
        self._where = f"{section}.jwks_file"
        self._version = self._file_version()
        self._set = _from_jwks(self._file, self._where) if self._file else []

    def current(self) -> list[Key]:
        """Return the current keys."""
        if (version := self._file_version()) != self._version:
            self._version = version
            try:
                self._set = _from_jwks(self._file, self._where)
            except ConfigError as error:
                log.warning("key_set_invalid", error=str(error))
            else:
                log.info("key_set_reloaded", file=self._file, keys=len(self._set))
        return self._configured + self._set

    def _file_version(self) -> tuple[int, ...] | None:
        """Return a value that changes with the file; None if it is missing."""
        if not self._file:
            return None
        try:
            found = os.stat(self._file)
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size


def verifier() -> PyJWS:
    """Return a verifier of signatures that accepts only the algorithms of a key."""
    jws = PyJWS(algorithms=[])
    for name, digest in _HMAC.items():
        jws.register_algorithm(name, _PreparedHmac(digest))
    for name, hash_type in _RSA.items():
        jws.register_algorithm(name, RSAAlgorithm(hash_type))
    for name, hash_type in _ECDSA.items():
        jws.register_algorithm(name, ECAlgorithm(hash_type))
    return jws


class _PreparedHmac(HMACAlgorithm):
    """An algorithm whose key was prepared once, when the configuration was read."""

    def prepare_key(self, key: str | bytes) -> bytes:
        return key if isinstance(key, bytes) else key.encode()

    def check_key_length(self, key: Any) -> None:
        return None


def _configured(config: TokenConfig, section: str) -> list[Key]:
    """Return the keys that the configuration itself has."""
    keys = []
    for name, until in (
        ("hmac_secret_key", 0),
        ("hmac_previous_secret_key", config.hmac_previous_secret_key_valid_until),
    ):
        if secret := getattr(config, name).get_secret_value():
            keys.append(Key(_secret(secret, f"{section}.{name}"), tuple(_HMAC), until=until))
    for name, kind in (
        ("rsa_public_key", RSAPublicKey),
        ("ecdsa_public_key", EllipticCurvePublicKey),
    ):
        if pem := getattr(config, name):
            keys.append(_public_key(_from_pem(pem, kind, f"{section}.{name}"), f"{section}.{name}"))
    return keys


def _secret(secret: str, where: str) -> bytes:
    if len(secret.encode()) < SHORTEST_SECRET:
        log.warning("secret_too_short", key=where, wanted_bytes=SHORTEST_SECRET)
    try:
        return HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(secret)
    except InvalidKeyError as error:
        raise ConfigError(where, [str(error)]) from None


def _from_pem(pem: str, kind: type, where: str) -> Any:
    try:
        key = load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, kind):
        raise ConfigError(where, ["is not a public key of this kind in PEM (BEGIN PUBLIC KEY)"])
    return key


def _from_jwks(file: str, where: str) -> list[Key]:
    """Return the keys of a JSON Web Key Set (RFC 7517) that can verify tokens."""
    try:
        found = json.loads(Path(file).read_text(encoding="utf-8"))["keys"]
        keys = [key for jwk in found if (key := _from_jwk(jwk, where)) is not None]
    except OSError as error:
        raise ConfigError(where, [f"{file} cannot be read: {error.strerror}"]) from None
    except (ValueError, LookupError, TypeError, AttributeError, PyJWTError) as error:
        raise ConfigError(where, [f"{file} is not a JSON Web Key Set: {error}"]) from None
    if not keys:
        raise ConfigError(where, [f"{file} has no RSA or EC key to check signatures with"])
    return keys


def _from_jwk(jwk: dict[str, Any], where: str) -> Key | None:
    read: dict[str, Callable[[dict[str, Any]], Any]]
    read = {"RSA": RSAAlgorithm.from_jwk, "EC": ECAlgorithm.from_jwk}
    if jwk["kty"] not in read or jwk.get("use", "sig") != "sig":
        return None
    if "d" in jwk:
        raise ConfigError(where, ["holds a private key; nodes need the public one only"])
    key = _public_key(read[jwk["kty"]](jwk), where, jwk.get("kid", ""))
    named = jwk.get("alg", key.algorithms[0])
    if named not in key.algorithms:
        return None
    return replace(key, algorithms=(named,)) if "alg" in jwk else key


def _public_key(key: Any, where: str, key_id: str = "") -> Key:
    """Return a public key with its algorithms."""
    if isinstance(key, RSAPublicKey):
        if key.key_size < SHORTEST_RSA:
            raise ConfigError(where, [f"an RSA key must have {SHORTEST_RSA} bits or more"])
        return Key(key, tuple(_RSA), key_id)
    if key.curve.name not in _CURVES:
        raise ConfigError(where, [f"the curve must be one of {', '.join(_CURVES)}"])
    return Key(key, (_CURVES[key.curve.name],), key_id)
