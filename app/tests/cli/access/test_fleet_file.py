"""The fleet file: found, read, and refused with the way to mend it."""

import json
from pathlib import Path

import pytest

from wsfleet.cli.access import fleet_file
from wsfleet.cli.errors import CannotRun

GOOD = {
    "redis_url": "redis://10.0.0.31:6379/0",
    "base_url": "http://10.0.0.11/",
    "nodes": {"node1-8001": "http://10.0.0.21:8001"},
    "loadbalancers": {"lb1": "http://10.0.0.11:8404"},
}


@pytest.fixture(autouse=True)
def _no_system_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_file, "SYSTEM_FLEET", tmp_path / "etc.json")
    monkeypatch.chdir(tmp_path)


def test_a_good_file_is_read(tmp_path: Path) -> None:
    """URLs come without a slash at their end, so that paths can be added."""
    path = tmp_path / "f.json"
    path.write_text(json.dumps(GOOD))
    assert fleet_file.load_fleet(path).base_url == "http://10.0.0.11"
    assert fleet_file.load_fleet(path).nodes == GOOD["nodes"]


def test_the_default_places_are_tried_in_order(tmp_path: Path) -> None:
    """The system's file goes before the local inventory's."""
    local = tmp_path / "inventory/local/.fleet.json"
    local.parent.mkdir(parents=True)
    local.write_text(json.dumps(GOOD))
    assert fleet_file.load_fleet(None).base_url == "http://10.0.0.11"
    (tmp_path / "etc.json").write_text(json.dumps({**GOOD, "base_url": "http://other"}))
    assert fleet_file.load_fleet(None).base_url == "http://other"


def test_a_default_file_is_used_only_for_its_own_url(tmp_path: Path) -> None:
    """Watching another cluster by URL must not ask the nodes of the local one."""
    (tmp_path / "etc.json").write_text(json.dumps(GOOD))
    assert fleet_file.find_fleet(None, "http://10.0.0.11") is not None
    assert fleet_file.find_fleet(None, "http://elsewhere") is None
    assert fleet_file.find_fleet(tmp_path / "etc.json", "http://elsewhere") is not None


def test_the_cookies_name_comes_from_the_urls_own_fleet(tmp_path: Path) -> None:
    """An option overrides it; for a URL of another cluster the default holds."""
    (tmp_path / "etc.json").write_text(json.dumps({**GOOD, "cookie": "NODE"}))
    assert fleet_file.locate("http://10.0.0.11")[0].cookie == "NODE"
    assert fleet_file.locate("http://10.0.0.11", cookie="OTHER")[0].cookie == "OTHER"
    assert fleet_file.locate("http://elsewhere")[0].cookie == "WSNODE"
    assert fleet_file.locate("http://elsewhere", tmp_path / "etc.json")[0].cookie == "NODE"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"redis_url": "http://x"}, "invalid at redis_url"),
        ({"redis_url": "memory://"}, "invalid at redis_url: .*inside one node process"),
        ({"redis_url": None}, "invalid at redis_url"),
        ({"base_url": "10.0.0.11"}, "invalid at base_url"),
        ({"nodes": {}}, "invalid at nodes"),
        ({"nodes": {"node1-8001": "node1:8001"}}, "invalid at nodes.node1-8001"),
        ({"loadbalancers": ["lb1"]}, "invalid at loadbalancers"),
    ],
)
def test_a_wrong_file_names_the_field(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    """The error is one line with the file, the field and the way to mend it."""
    path = tmp_path / "f.json"
    path.write_text(json.dumps({**GOOD, **change}))
    with pytest.raises(CannotRun, match=message) as caught:
        fleet_file.load_fleet(path)
    assert str(path) in caught.value.message
    assert "site.yml" in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_what_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    """A cut or empty file is an error of its own, not a traceback."""
    path = tmp_path / "f.json"
    path.write_text(text)
    with pytest.raises(CannotRun, match="is invalid at the document"):
        fleet_file.load_fleet(path)


def test_a_missing_file_says_where_it_should_be(tmp_path: Path) -> None:
    """Without any file the default places are named; a named file is named itself."""
    with pytest.raises(CannotRun, match=r"no fleet file.*\.fleet\.json.*--fleet"):
        fleet_file.load_fleet(None)
    with pytest.raises(CannotRun, match="cannot read the fleet file"):
        fleet_file.load_fleet(tmp_path / "none.json")
