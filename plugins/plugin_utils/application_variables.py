"""Mistakes in the variables of an application (`wsnode_app` and others), by host."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

LOCK = "requirements.lock"
BUILD_LOCK = "build-requirements.lock"
VARIABLES = (
    "wsnode_app_source",
    "wsnode_app_environment",
    "wsnode_app_before",
    "wsnode_app_check",
    "wsnode_app_writable_paths",
    "wsnode_app_memory_max",
    "wsnode_app_sandbox",
    "wsnode_app_processes",
    "wsnode_app_redis",
)
SHARED = ("wsnode_app", "wsnode_app_source", "wsnode_app_before")
"""Building a release, and the steps before it, happen once for all nodes."""

OBJECT = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
GIT = re.compile(r"git\+[^#]+@[^@/#:]+(/[^@#:]+)*(#subdirectory=.+)?")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
MEMORY = re.compile(r"\d+(\.\d+)?[KMGT%]?|infinity")
SANDBOX = Path(__file__).resolve().parents[2] / "roles/fleet/vars/main/sandbox.yml"

MOST_PROCESSES = 64

OWN_KEYS = "wsfleet:"

Get = Callable[[str], Any]


def application_mistakes(hosts: Mapping[str, Get], directories: Mapping[str, str]) -> list[str]:
    """List the mistakes on the nodes, each with its correction.

    `hosts` has a function for each node that gives the value of a variable, `directories` the
    folder of its inventory, where a relative source begins.
    """
    mistakes = _differences(SHARED, hosts, "wsnodes")
    for name, get in hosts.items():
        lines = _mistakes(get, Path(directories.get(name) or "."))
        mistakes += [line.replace("HOST", f"the host '{name}'", 1) for line in lines]
    return list(dict.fromkeys(mistakes))


def key_mistakes(hosts: Mapping[str, Get]) -> list[str]:
    """List the mistakes in the keys that the application may use, on the hosts of Redis."""
    if mistakes := _differences(["redis_app_keys"], hosts, "redis"):
        return mistakes
    for pattern in next(iter(hosts.values()))("redis_app_keys") if hosts else ():
        if not re.fullmatch(r"[!-~]+", pattern):
            mistakes.append(f"redis_app_keys has '{pattern}': write a pattern, as chat:*.")
            continue
        begin = re.split(r"[*?\[\\]", pattern)[0]
        if begin.startswith(OWN_KEYS) or OWN_KEYS.startswith(begin):
            mistakes.append(
                f"redis_app_keys has '{pattern}', which {OWN_KEYS}… may match, the cluster's own "
                "keys: begin it with the application's prefix, as chat:*."
            )
    return mistakes


def _differences(variables: Iterable[str], hosts: Mapping[str, Get], group: str) -> list[str]:
    return [
        f"{variable} is not the same on all hosts of the group '{group}': set it once, for the "
        "group."
        for variable in variables
        if len({str(get(variable)) for get in hosts.values()}) > 1
    ]


def _mistakes(get: Get, directory: Path) -> Iterator[str]:
    if not get("wsnode_app"):
        given = [variable for variable in VARIABLES if get(variable)]
        if given:
            yield (
                f"{given[0]} of HOST is set, and wsnode_app is not: name the ASGI application, as "
                "chat.app:app, or take the variable away."
            )
        return
    if not OBJECT.fullmatch(get("wsnode_app")):
        yield (
            f"wsnode_app of HOST is '{get('wsnode_app')}': write MODULE:NAME, as chat.app:app, "
            "where NAME is the ASGI application in the module."
        )
    yield from _source_mistakes(get("wsnode_app_source"), directory)
    yield from _environment_mistakes(get("wsnode_app_environment"))
    check = get("wsnode_app_check")
    if check and not re.fullmatch(r"/[!-~]*", check):
        yield f"wsnode_app_check of HOST is '{check}': write a path, as /health."
    for path in get("wsnode_app_writable_paths"):
        yield from _path_mistakes(path)
    memory = get("wsnode_app_memory_max")
    if memory and not MEMORY.fullmatch(memory):
        yield (
            f"wsnode_app_memory_max of HOST is '{memory}': write bytes, as 512M or 2G, or a part "
            "of the machine's memory, as 40%."
        )
    yield from _sandbox_mistakes(get("wsnode_app_sandbox"))
    processes = get("wsnode_app_processes")
    if not 0 <= processes <= MOST_PROCESSES:
        yield (
            f"wsnode_app_processes of HOST is {processes}: write a number from 0, where the nodes "
            f"run the handlers, to {MOST_PROCESSES}; about one a core is enough."
        )


def _source_mistakes(source: str, directory: Path) -> Iterator[str]:
    what = f"wsnode_app_source of HOST is '{source}'"
    if not source:
        yield (
            "wsnode_app_source of HOST is empty: name the folder with the application's "
            f"pyproject.toml, {LOCK} and {BUILD_LOCK}, a wheel, or git+URL@REF."
        )
    elif source.startswith("git+"):
        if re.search(r"://[^/@]*:[^/@]*@", source):
            yield (
                "wsnode_app_source of HOST has a password in its URL: leave it out, and let git "
                "find it (git help credentials), or use ssh."
            )
        elif not GIT.fullmatch(source):
            yield f"{what}: write git+URL@REF, where REF is a tag, a branch or a commit."
    else:
        path = directory / source
        needed = [path / "pyproject.toml", path / LOCK, path / BUILD_LOCK]
        if path.suffix == ".whl":
            needed = [path, path.parent / LOCK]
        if missing := [file for file in needed if not file.is_file()]:
            file = missing[0]
            hint = f": make it by scripts/lock --app {file.parent}" if file != needed[0] else ""
            yield (
                f"{what}, and {file} is missing{hint}. A source is a folder with pyproject.toml, "
                f"{LOCK} and {BUILD_LOCK}, or a wheel with {LOCK} beside it; a relative one begins "
                "at the inventory's folder."
            )


def _environment_mistakes(environment: Mapping[Any, Any]) -> Iterator[str]:
    for name, value in environment.items():
        if not NAME.fullmatch(str(name)):
            yield (
                f"wsnode_app_environment of HOST has '{name}': a name has letters, digits and '_'."
            )
        elif str(name).startswith("WSFLEET_"):
            yield (
                f"wsnode_app_environment of HOST has {name}, a setting of the node: use the role's "
                "variable for it, see roles/wsnode/README.md."
            )
        elif isinstance(value, bool) or not isinstance(value, str | int | float):
            yield (
                f"{name} in wsnode_app_environment of HOST is no text: write it in quotes, as the "
                "application reads it."
            )


def _path_mistakes(path: str) -> Iterator[str]:
    what = f"wsnode_app_writable_paths of HOST has '{path}'"
    if not re.fullmatch(r"(/[\w.+@-]+)+", path, re.ASCII) or ".." in path:
        yield f"{what}: write an absolute path without spaces, as /var/lib/chat."
    elif path.split("/")[1] in ("home", "root", "tmp"):
        yield f"{what}, which the sandbox hides: use another one, as /var/lib/chat."


def _sandbox_mistakes(exceptions: Mapping[Any, Any]) -> Iterator[str]:
    lines = yaml.safe_load(SANDBOX.read_text())["fleet_sandbox"].splitlines()
    known = {line.partition("=")[0] for line in lines}
    for name, value in exceptions.items():
        if name not in known:
            yield (
                f"wsnode_app_sandbox of HOST has '{name}': exceptions are for "
                f"{', '.join(sorted(known))} (see systemd.exec)."
            )
        elif not isinstance(value, bool | str | int) or "\n" in str(value):
            yield f"{name} in wsnode_app_sandbox of HOST must be true, false or one line of text."
