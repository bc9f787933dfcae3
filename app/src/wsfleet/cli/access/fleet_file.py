"""Finds the fleet file, and says how to mend one that is missing or wrong."""

import ssl
from pathlib import Path

from pydantic import ValidationError

from wsfleet.cli import CannotRun
from wsfleet.config.fleet_file import SYSTEM_FLEET, Fleet

__all__ = ["Fleet", "find_fleet", "load_fleet", "trusted"]

LOCAL_FLEET = Path("inventory/local/.fleet.json")


def load_fleet(path: Path | None) -> Fleet:
    """Return the fleet of `path`, or of the first default place that has a fleet file.

    Raises:
        CannotRun: there is no fleet file, or it cannot be read or is wrong; the message names
            the file, the field, and the way to mend it.

    """
    if path is None:
        path = _default()
    if path is None:
        raise CannotRun(
            f"no fleet file: neither {SYSTEM_FLEET} nor {LOCAL_FLEET} exists. "
            "Run site.yml, which writes it, or name one with --fleet FILE or WSFLEET_FLEET."
        )
    try:
        text = path.read_bytes()
    except OSError as error:
        raise CannotRun(
            f"cannot read the fleet file {path}: {error.strerror}. "
            "Name another with --fleet FILE, or read it as a user who may."
        ) from error
    try:
        return Fleet.model_validate_json(text)
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in wrong["loc"]) or "the document"
        raise CannotRun(
            f"the fleet file {path} is wrong at {place}: {wrong['msg']}. "
            "Run site.yml again: it writes the file anew."
        ) from error


def find_fleet(path: Path | None, base_url: str) -> Fleet | None:
    """Return the fleet a URL belongs to, or None.

    A file named by the user is always taken; a default one only if it is the URL's own, because
    the URL may just as well lead to another cluster.

    Raises:
        CannotRun: as :func:`load_fleet`.

    """
    if path is not None:
        return load_fleet(path)
    default = _default()
    if default is None:
        return None
    try:
        fleet = load_fleet(default)
    except CannotRun:
        return None  # nobody asked for it
    return fleet if fleet.base_url == base_url else None


def trusted(fleet: Fleet | None = None) -> ssl.SSLContext:
    """Return what certificates are checked with: the system's CAs, and the fleet's own.

    Raises:
        CannotRun: the fleet's own cannot be read.

    """
    context = ssl.create_default_context()  # httpx's own knows nothing of SSL_CERT_FILE
    if fleet is not None and fleet.ca is not None:
        try:
            context.load_verify_locations(fleet.ca)
        except OSError as error:
            raise CannotRun(
                f"cannot read the fleet's CA {fleet.ca}: {error.strerror}. "
                "Run site.yml again, which puts it there, or read it as a user who may."
            ) from error
    return context


def _default() -> Path | None:
    for path in (SYSTEM_FLEET, LOCAL_FLEET):
        if path.exists():
            return path
    return None
