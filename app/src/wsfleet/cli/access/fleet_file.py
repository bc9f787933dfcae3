"""The fleet file: finding it, reading it, and errors that say how to mend it."""

from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from wsfleet.cli.access.endpoint import FleetEndpoint, parse_url
from wsfleet.cli.errors import CannotRun
from wsfleet.config.fleet_file import SYSTEM_FLEET, Fleet

__all__ = ["Fleet", "find_fleet", "load_fleet", "locate"]

LOCAL_FLEET = Path("inventory/local/.fleet.json")


def load_fleet(path: Path | None) -> Fleet:
    """Return the fleet of the file `path`; None means the first default file that exists.

    Raises:
        CannotRun: the file is missing, unreadable or invalid; the message names the file, the
            field, and the way to mend it.

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
            "Name another with --fleet FILE, or run the command as a user who may read it."
        ) from error
    try:
        return Fleet.model_validate_json(text)
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in wrong["loc"]) or "the document"
        raise CannotRun(
            f"the fleet file {path} is invalid at {place}: {wrong['msg']}. "
            "Run site.yml, which writes the file again."
        ) from error


def find_fleet(path: Path | None, base_url: str) -> Fleet | None:
    """Return the fleet that a URL belongs to, or None if it is unknown.

    A file named by the user always counts. A default file counts only if `base_url` is its own,
    because the URL may belong to another cluster.

    Raises:
        CannotRun: as :func:`load_fleet`, for a file named by the user.

    """
    if path is not None:
        return load_fleet(path)
    default = _default()
    if default is None:
        return None
    try:
        fleet = load_fleet(default)
    except CannotRun:
        return None  # the user did not ask for this file
    return fleet if fleet.base_url == base_url else None


def locate(
    url: str, path: Path | None = None, cookie: str | None = None
) -> tuple[FleetEndpoint, Fleet | None]:
    """Return the endpoint of a URL, with the name of the fleet's cookie, and the fleet if known.

    `path` is a fleet file, `cookie` a cookie's name that overrides the file's.

    Raises:
        CannotRun: the URL is invalid, or as :func:`find_fleet`.

    """
    endpoint = parse_url(url)
    fleet = find_fleet(path, endpoint.http)
    name = cookie or (fleet.cookie if fleet else endpoint.cookie)
    return replace(endpoint, cookie=name), fleet


def _default() -> Path | None:
    for path in (SYSTEM_FLEET, LOCAL_FLEET):
        if path.exists():
            return path
    return None
