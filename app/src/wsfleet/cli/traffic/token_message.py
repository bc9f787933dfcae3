"""A message for an application, with a token by which it is recognised when it comes back."""

from dataclasses import dataclass

from wsfleet.cli.errors import CannotRun

PLACEHOLDER = "{token}"


@dataclass(frozen=True, slots=True)
class TokenMessage:
    """A message of an application's own form; each copy has another token."""

    template: str

    def with_token(self, token: str) -> bytes:
        """Return the message with a token in place of each `{token}`."""
        return self.template.replace(PLACEHOLDER, token).encode()


def token_message(text: str | None) -> TokenMessage | None:
    """Return the message of the option `--message`, or None without one.

    Raises:
        CannotRun: the text has no `{token}`.

    """
    if text is None:
        return None
    if PLACEHOLDER not in text:
        raise CannotRun(
            f"--message {text!r} has no {PLACEHOLDER}, by which a message is recognised when it "
            f"comes back: write it where the application keeps text, as in "
            f'\'{{"text": "{PLACEHOLDER}"}}\''
        )
    return TokenMessage(text)
