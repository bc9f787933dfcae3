"""The keys of the configuration file for the keys that verify tokens."""

from typing import ClassVar, Self

from pydantic import NonNegativeInt, SecretStr, model_validator

from wsfleet.config.section import Section


class TokenConfig(Section):
    """The keys that verify tokens; without one no token is accepted."""

    hmac_secret_key: SecretStr = SecretStr("")
    """A secret that tokens are signed with (HS256, HS384, HS512): 32 bytes or more."""
    hmac_previous_secret_key: SecretStr = SecretStr("")
    """The old secret, which is still accepted while clients change to the new one."""
    hmac_previous_secret_key_valid_until: NonNegativeInt = 0
    """The end of that time in Unix seconds; 0 is no end."""
    rsa_public_key: str = ""
    """A public key in PEM, of 2048 bits or more, for tokens with RS256, RS384 and RS512."""
    ecdsa_public_key: str = ""
    """A public key in PEM on the curve P-256, P-384 or P-521, for tokens with ES256, ES384 or ES512
    respectively."""
    jwks_file: str = ""
    """A file with a JSON Web Key Set, whose RSA and EC keys are accepted; a token's `kid` chooses
    among them. Read again when it changes. Not a key of Centrifugo, which fetches
    `jwks_public_endpoint`."""
    audience: str = ""
    """Unless empty, the claim `aud` must be this, or a list with it."""
    issuer: str = ""
    """Unless empty, the claim `iss` must be this."""

    unsupported: ClassVar[str] = """
        jwks_public_endpoint audience_regex issuer_regex user_id_claim
        insecure_skip_jwks_endpoint_safety_check
    """

    @model_validator(mode="after")
    def _previous_has_a_current(self) -> Self:
        if self.hmac_previous_secret_key.get_secret_value():
            if not self.hmac_secret_key.get_secret_value():
                raise ValueError("hmac_previous_secret_key needs hmac_secret_key")
        elif self.hmac_previous_secret_key_valid_until:
            raise ValueError("hmac_previous_secret_key_valid_until needs hmac_previous_secret_key")
        return self


class SubscriptionTokenConfig(TokenConfig):
    """The keys that verify subscription tokens, if they differ from those of connection tokens."""

    enabled: bool = False
    """Verify subscription tokens with this section instead of `client.token`."""
