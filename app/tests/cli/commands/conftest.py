"""Fixtures for commands on an application: two nodes that serve one, behind HAProxy."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.fleet import Rig, running_fleet


@contextmanager
def _running_guests(folder: Path) -> Iterator[Rig]:
    with running_fleet(
        folder, WSFLEET_APP="tests.support.guest:app", WSFLEET_NODE_HEADER="X-Wsfleet-Node"
    ) as rig:
        yield rig


@pytest.fixture(scope="session")
def guests(processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A fleet with an application that all tests share: leave it as it was."""
    with _running_guests(tmp_path_factory.mktemp("guests")) as rig:
        yield rig


@pytest.fixture
def own_guests(processes: None, tmp_path: Path) -> Iterator[Rig]:
    """A fleet with an application for one test, which may break it."""
    with _running_guests(tmp_path) as rig:
        yield rig
