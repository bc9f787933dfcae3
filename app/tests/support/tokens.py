"""Tokens, their keys, and a configuration that demands one."""

import base64
import json
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

SECRET = "a secret of thirty-two bytes or more"  # noqa: S105 - the tests' own


API_KEY, NEXT_API_KEY = "the key of today", "the key of tomorrow"


CONFIG = f"""
client:
  token: {{hmac_secret_key: "{SECRET}"}}
  disallow_anonymous_connection_tokens: true
  allowed_origins: ["https://*.example.com"]
  user_connection_limit: 2
  channel_limit: 3
http_api:
  key: "{API_KEY}"
  keys: ["{NEXT_API_KEY}"]
channel:
  without_namespace: {{allow_subscribe_for_client: true}}
"""


def token(user: str = "ann", secret: str = SECRET, **claims: Any) -> str:
    """A connection token."""
    return jwt.encode({"sub": user} | claims, secret, "HS256")


def bearer(text: str) -> dict[str, str]:
    """The header that shows a token."""
    return {"Authorization": f"Bearer {text}"}


RSA_KEY, RSA_STRANGER = (rsa.generate_private_key(65537, 2048) for _ in range(2))


def by_hand(header: dict[str, Any], claims: dict[str, Any], signature: bytes = b"") -> str:
    """A token that no library would make."""
    parts = (json.dumps(header).encode(), json.dumps(claims).encode(), signature)
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


def pem(private: Any) -> str:
    """The public half of a key."""
    text: bytes = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return text.decode()
