"""Servers without a reload: what is compared, what changes in which order, when not."""

from __future__ import annotations

import json
import socketserver
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.wsfleet.wsfleet.plugins.modules.haproxy_servers import (
    Config,
    Process,
    Server,
    numeric,
    parse_config,
    parse_stat,
    parse_state,
    steps,
    why_reload,
)

MODULE = Path(__file__).resolve().parents[1] / "modules" / "haproxy_servers.py"
CONFIG = """\
global
    setenv WSFLEET_SETTINGS 0123
backend others
    server n1 10.0.0.9:80
backend nodes
    default-server check
    # server n0 10.0.0.8:8001
    server n1 10.0.0.1:8001 cookie n1 check inter 2s
    server n2 fd00::2:8001 cookie n2 check port 9001 inter 2s ssl verify required
"""
STAT = """\
# pxname,svname,type,addr,cookie,
nodes,n1,2,10.0.0.1:8001,n1,
nodes,BACKEND,1,,,
others,n1,2,10.0.0.9:80,,
"""
# As HAProxy 2.6 and 3.0 say it, of the one backend; there are fields between.
STATE = """\
1
# be_id be_name srv_id srv_name srv_addr srv_uweight srv_port srvrecord srv_use_ssl srv_check_port
4 nodes 1 n1 10.0.0.1 1 8001 - 0 0
4 nodes 2 n2 fd00::2 3 8001 - 1 9001
"""
N1 = Server("nodes", "n1", "10.0.0.1:8001", "n1", 8001, tls=False)
N2 = Server("nodes", "n2", "[fd00::2]:8001", "n2", 9001, tls=True)
N3 = Server("nodes", "n3", "10.0.0.3:8001", "n3", 9001, tls=True)
N1_ELSEWHERE = replace(N1, address="10.0.0.7:8001")
N1_WITH_TLS = replace(N1, tls=True)
N1_CHECKED_ELSEWHERE = replace(N1, check_port=9001)


class Running(Process):
    """A process that only notes what it is told."""

    def __init__(
        self, *servers: Server, release: str = "3.0.11-1+deb13u5", refuses: str = ""
    ) -> None:
        super().__init__("", ["nodes"], 5)
        self._servers = {server.name: server for server in servers}
        self._release = release
        self._refuses = refuses
        self.told: list[str] = []

    def ask(self, command: str) -> str:
        """Answer as HAProxy 3.0 does."""
        match command.split():
            case ["show", "env", name]:
                return f"{name}=0123"
            case ["show", "info"]:
                return f"Name: HAProxy\nVersion: {self._release}\nPid: 1"
            case ["show", "servers", "state"]:
                rows = [
                    f"nodes {s.name} {s.check_port} {s.tls:d} {s.weight}"
                    for s in self._servers.values()
                ]
                fields = "# be_name srv_name srv_check_port srv_use_ssl srv_uweight"
                return "\n".join(["1", fields, *rows])
            case ["show", "stat"]:
                rows = [f"nodes,{s.name},2,{s.address},{s.cookie}," for s in self._servers.values()]
                return "\n".join(["# pxname,svname,type,addr,cookie,", *rows])
        self.told.append(command)
        if self._refuses and command.startswith(self._refuses):
            return "No such thing."
        match command.split():
            case ["add", "server", name, address, _, cookie, _, _, port, *options]:
                name = name.removeprefix("nodes/")
                server = Server("nodes", name, address, cookie, int(port), "ssl" in options)
                self._servers[name] = server
                return "New server registered."
            case ["wait", *_]:
                return "Done."
            case ["del", "server", name]:
                del self._servers[name.removeprefix("nodes/")]
                return "Server deleted."
        return ""


def config(*servers: Server) -> Config:
    """A configuration with these servers, and the mark of `Running`."""
    lines = {
        s: f"{s.name} {s.address} cookie {s.cookie} check port {s.check_port}"
        + " ssl verify required" * s.tls
        for s in servers
    }
    return Config("0123", lines)


def test_the_configuration_is_read() -> None:
    """Its mark, and the servers of the one backend, each with its whole line."""
    found = parse_config(CONFIG, ["nodes"])
    assert found.mark == "0123"
    assert found.lines == {
        N1: "n1 10.0.0.1:8001 cookie n1 check inter 2s",
        N2: "n2 fd00::2:8001 cookie n2 check port 9001 inter 2s ssl verify required",
    }
    with pytest.raises(ValueError, match="WSFLEET_SETTINGS"):
        parse_config("global\n", ["nodes"])


def test_the_process_is_read() -> None:
    """Its servers, and neither the backend itself nor another one's; TLS, and ports for checks."""
    state = parse_state(STATE)
    assert state == {("nodes", "n1"): (0, False, 1), ("nodes", "n2"): (9001, True, 3)}
    assert parse_stat(STAT, ["nodes"], state) == {N1}
    for said, server in (((0, True, 1), N1_WITH_TLS), ((9001, False, 1), N1_CHECKED_ELSEWHERE)):
        assert parse_stat(STAT, ["nodes"], {("nodes", "n1"): said}) == {server}
    (heavy,) = parse_stat(STAT, ["nodes"], {("nodes", "n1"): (0, False, 3)})
    assert heavy.weight == 3


def test_a_node_is_a_server_of_several_backends() -> None:
    """It is added to all of them, and deleted from all of them."""
    text = CONFIG.replace("backend others", "backend console")
    config = parse_config(text, ["nodes", "static", "console"])
    n1 = Server("console", "n1", "10.0.0.9:80", "", 80, tls=False)
    assert config.lines == {
        n1: "n1 10.0.0.9:80",
        **parse_config(CONFIG, ["nodes"]).lines,
    }
    assert steps(config.lines, []) == ([n1, N1, N2], [], [])
    assert steps([], config.lines) == ([], [n1, N1, N2], [])


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("10.0.0.1:8001", "10.0.0.1:8001"),
        ("fd00::2:8001", "[fd00::2]:8001"),
        ("[fd00:0::2]:8001", "[fd00::2]:8001"),
        ("host.invalid:8001", "host.invalid:8001"),
    ],
)
def test_addresses_are_compared_as_haproxy_writes_them(address: str, expected: str) -> None:
    """IPv6 has brackets; a name that nobody knows stays."""
    assert numeric(address) == expected


def test_a_name_is_resolved() -> None:
    """HAProxy shows the address, not the name."""
    assert numeric("localhost:8001") in {"127.0.0.1:8001", "[::1]:8001"}


def test_a_name_that_is_taken_is_freed_first() -> None:
    """New servers come before old ones go, so that somebody serves; a moved one goes in between."""
    assert steps([N1_ELSEWHERE, N3], [N1, N2]) == ([N3], [N1, N2], [N1_ELSEWHERE])
    assert steps([N1, N2], [N2, N1]) == ([], [], [])


def test_servers_change_at_run_time() -> None:
    """The desired servers run afterwards, without a reload; a second run changes nothing."""
    process = Running(N1, N2)
    assert why_reload(process, config(N2, N3), check=False) == ""
    assert process.servers == {N2, N3}
    assert process.told == [
        "add server nodes/n3 10.0.0.3:8001 cookie n3 check port 9001 ssl verify required",
        "enable health nodes/n3",
        "enable server nodes/n3",
        "set server nodes/n1 state maint",
        "wait 5s srv-removable nodes/n1",
        "del server nodes/n1",
    ]
    process.told.clear()
    assert why_reload(process, config(N2, N3), check=False) == ""
    assert process.told == []


def test_a_node_that_now_speaks_tls_is_another_server() -> None:
    """It is replaced with no reload: its old line would never reach it."""
    process = Running(N1, N2)
    assert why_reload(process, config(N1_WITH_TLS, N2), check=False) == ""
    assert process.servers == {N1_WITH_TLS, N2}


def test_a_node_that_is_checked_on_another_port_is_another_server() -> None:
    """Its line changed; a process that was told the port already is told nothing."""
    process = Running(N1)
    assert why_reload(process, config(N1_CHECKED_ELSEWHERE), check=False) == ""
    assert process.servers == {N1_CHECKED_ELSEWHERE}
    process.told.clear()
    assert why_reload(process, config(N1_CHECKED_ELSEWHERE), check=False) == ""
    assert process.told == []


def test_a_weight_changes_while_the_server_runs() -> None:
    """It is set with no reload, in every release; in check mode it is not."""
    process = Running(N1, N2, release="2.6.12-1+deb12u4")
    wanted = config(replace(N1, weight=2), N2)
    assert why_reload(process, wanted, check=True) == ""
    assert process.told == []
    assert why_reload(process, wanted, check=False) == ""
    assert process.told == ["set server nodes/n1 weight 2"]
    line = CONFIG.replace("cookie n1 check", "cookie n1 weight 2 check")
    assert [server.weight for server in parse_config(line, ["nodes"]).lines] == [2, 1]


def test_check_mode_changes_nothing() -> None:
    """It only asks."""
    process = Running(N1)
    assert why_reload(process, config(N1, N3), check=True) == ""
    assert process.told == []


def test_other_settings_want_a_reload() -> None:
    """A process with other settings is told nothing, even if its servers differ too."""
    process = Running(N1)
    wanted = Config("4567", config(N1, N3).lines)
    assert why_reload(process, wanted, check=False) == "settings other than the servers changed"
    assert process.told == []


def test_an_older_haproxy_wants_a_reload() -> None:
    """Before 3.0 a server cannot be added with its cookie."""
    process = Running(N1, release="2.6.12-1+deb12u4")
    assert "2.6.12" in why_reload(process, config(N1, N3), check=False)
    assert process.told == []
    assert why_reload(process, config(N1), check=False) == ""


@pytest.mark.parametrize("refuses", ["add", "enable health", "wait", "del"])
def test_a_refusal_wants_a_reload(refuses: str) -> None:
    """The reason is what HAProxy said, and to what."""
    reason = why_reload(Running(N1, refuses=refuses), config(N3), check=False)
    assert reason.startswith(f"HAProxy says to '{refuses}")
    assert reason.endswith("No such thing.")


def test_a_process_that_did_not_obey_wants_a_reload() -> None:
    """Its word is not taken for it: what runs is compared afterwards."""

    class Liar(Running):
        def ask(self, command: str) -> str:
            return "New server registered." if command.startswith("add") else super().ask(command)

    assert why_reload(Liar(N1), config(N1, N3), check=False) == "its servers still differ"


class AdminSocket(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """The admin socket of a process whose settings are old for its first answers."""

    daemon_threads = True

    def __init__(self, path: Path, old_answers: float) -> None:
        super().__init__(str(path), Commands)
        self.process = Running(N1)
        self.old_answers = old_answers


class Commands(socketserver.StreamRequestHandler):
    """Answers one command."""

    server: AdminSocket

    def handle(self) -> None:
        """Answer as `Running` does, or with another mark."""
        command = self.rfile.readline().decode()
        answer = self.server.process.ask(command)
        if command.startswith("show env") and self.server.old_answers > 0:
            self.server.old_answers -= 1
            answer = "WSFLEET_SETTINGS=old"
        self.wfile.write(answer.encode())


@pytest.mark.parametrize(
    ("old_answers", "timeout", "reload"),
    [
        (3, 60, ""),
        (float("inf"), 1, "settings other than the servers changed"),
    ],
)
def test_check_mode_waits_for_a_reload(
    tmp_path: Path, old_answers: float, timeout: int, reload: str
) -> None:
    """It returns when the new process answers, or after the timeout with what is still missing."""
    arguments = {
        "config": CONFIG.replace("    server n2", "    # server n2"),
        "backends": ["nodes"],
        "socket": str(tmp_path / "admin"),
        "timeout": timeout,
        "_ansible_check_mode": True,
    }
    with AdminSocket(tmp_path / "admin", old_answers) as admin:
        threading.Thread(target=admin.serve_forever, args=(0.05,), daemon=True).start()
        done = subprocess.run(
            [sys.executable, MODULE],
            input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}),
            capture_output=True,
            text=True,
            timeout=120,
        )
        admin.shutdown()
    result: dict[str, Any] = json.loads(done.stdout)
    assert result.get("reload") == reload, result
