"""The example `django-backend` on a machine of the cluster: the nodes ask it by HTTP."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import centrifuge
import httpx
import pytest
import yaml

from lab.waiting import settled, tasks_ended, until

if TYPE_CHECKING:
    from molecule.conftest import Cluster

DJANGO = Path(__file__).parents[3] / "examples" / "django-backend"
PORT = 8000
KEY = "a-key-of-the-nodes"
PEOPLE = """
from django.contrib.auth.models import User
from chat.models import Room
ada, ben, eve = (User.objects.create_user(name, password=name) for name in ("ada", "ben", "eve"))
Room.objects.create(slug="tea", title="Tea").members.set([ada, ben])
"""
RUN = """
systemd-run --quiet --property User=www-data --property StateDirectory=django
--property WorkingDirectory=/srv/django/source
--setenv PYTHONPATH=/srv/django/packages --setenv CHAT_DATABASE=/var/lib/django/db.sqlite3
--setenv DJANGO_DEBUG=0 --setenv DJANGO_ALLOWED_HOSTS=* --setenv DJANGO_SECRET_KEY=secret
"""


@pytest.fixture(scope="module")
def site(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Run the example with gunicorn, three users and a room, and return its URL.

    Its packages have no compiled parts, so those of this machine are right.
    """
    folder = tmp_path_factory.mktemp("django")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--require-hashes", "--no-deps"]
    lock = ["--only-binary=:all:", f"--requirement={DJANGO / 'requirements.lock'}"]
    subprocess.run([*pip, *lock, f"--target={folder / 'packages'}"], check=True, timeout=300)
    shutil.copytree(DJANGO, folder / "source")
    archive = shutil.make_archive(str(folder), "gztar", folder)
    cluster.on("lb1", "mkdir --parents /srv/django")
    unpack = f"src={archive} dest=/srv/django owner=root group=root"
    cluster.host("lb1").ansible("unarchive", unpack, check=False, become=True)
    cluster.on("lb1", "chmod --recursive a+rX /srv/django")
    run, bind = " ".join(RUN.split()), f"{cluster.address('lb1')}:{PORT}"
    once, manage = f"{run} --wait --pipe", "python3 manage.py"
    cluster.on("lb1", f"{once} {manage} migrate --verbosity=0")
    cluster.host("lb1").check_output(f"{once} {manage} shell --verbosity=0 -c %s", PEOPLE)
    server = f"python3 -m gunicorn chat.wsgi --no-control-socket --workers 2 --bind {bind}"
    cluster.on("lb1", f"{run} --setenv CHAT_PROXY_KEY={KEY} --unit django {server}")
    return f"http://{bind}"


@pytest.fixture(scope="module")
def _nodes(
    cluster: Cluster, with_node3: str, example: Callable[..., tuple[str, str]], site: str
) -> None:
    """Deploy the example's configuration, with the tutorial on the nodes as before."""
    config = yaml.safe_load((DJANGO / "wsfleet.yml").read_text())
    proxies = [*config["channel"]["proxy"].values(), config["rpc"]["proxy"]]
    for proxy in (config["client"]["proxy"]["connect"], *proxies):
        proxy["endpoint"] = proxy["endpoint"].replace("http://127.0.0.1:8000", site)
        proxy["timeout"] = "5s"
        proxy["http"] = {"static_headers": {"X-Proxy-Key": KEY}}
    rules = [f"tcp dport {PORT} accept"]
    cluster.play("site.yml", with_node3, *example(config, firewall_rules=rules))
    until(lambda: httpx.get(f"{site}/accounts/login/").is_success, "Django serves")


class Room(centrifuge.SubscriptionEventHandler):  # type: ignore[misc]  # the SDK has no types
    """The messages of the room that a client receives."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.refused: list[int] = []

    async def on_publication(self, ctx: centrifuge.PublicationContext) -> None:
        """Note a message."""
        self.heard.append(ctx.pub.data)

    async def on_unsubscribed(self, ctx: centrifuge.UnsubscribedContext) -> None:
        """Note a refusal."""
        self.refused.append(ctx.code)


def signed_in(site: str, name: str) -> str:
    """Sign in to Django as a browser does, and return the session's cookie."""
    with httpx.Client(base_url=site) as browser:
        browser.get("/accounts/login/").raise_for_status()
        form = {"username": name, "password": name}
        form["csrfmiddlewaretoken"] = browser.cookies["csrftoken"]
        browser.post("/accounts/login/", data=form)
        return f"sessionid={browser.cookies['sessionid']}"


@asynccontextmanager
async def member(cluster: Cluster, site: str, name: str) -> AsyncIterator[centrifuge.Client]:
    """Sign in, and connect to a node with the cookie of Django's session."""
    cookie = await asyncio.to_thread(signed_in, site, name)
    client = centrifuge.Client(
        f"{cluster.url.replace('http', 'ws', 1)}/connection/websocket",
        headers={"Cookie": cookie},
        timeout=30.0,
    )
    await client.connect()
    await client.ready()
    try:
        yield client
    finally:
        await client.disconnect()


async def enter(client: centrifuge.Client) -> Room:
    """Subscribe to the room."""
    room = Room()
    await client.new_subscription("room:tea", events=room).subscribe()
    return room


@pytest.mark.usefixtures("_nodes")
async def test_django_decides(cluster: Cluster, site: str) -> None:
    """Members talk across the nodes; others are refused as Django says."""
    async with (
        member(cluster, site, "ada") as ada,
        member(cluster, site, "ben") as ben,
        member(cluster, site, "eve") as eve,
    ):
        room = await enter(ben)
        await ben.get_subscription("room:tea").ready()
        await ada.publish("room:tea", {"text": "Milk?"})
        await settled(lambda: len(room.heard) == 1, "ben hears it")
        assert room.heard[0]["author"] == "ada"
        answer = await ada.rpc("members", {"room": "tea"})
        assert answer.data == {"members": ["ada", "ben"]}
        with pytest.raises(centrifuge.ReplyError) as refused:
            await eve.publish("room:tea", {"text": "Tea!"})
        assert refused.value.code == 403
        outside = await enter(eve)
        await settled(lambda: outside.refused == [403], "eve is refused")
    await tasks_ended()


@pytest.mark.usefixtures("_nodes")
async def test_a_frozen_backend_costs_no_connection(cluster: Cluster, site: str) -> None:
    """Calls get the temporary error 100, and are answered on the same connection afterwards."""
    async with member(cluster, site, "ada") as ada:
        await asyncio.to_thread(cluster.on, "lb1", "systemctl kill --signal STOP django")
        try:
            with pytest.raises(centrifuge.ReplyError) as failed:
                await ada.rpc("members", {"room": "tea"})
        finally:
            await asyncio.to_thread(cluster.on, "lb1", "systemctl kill --signal CONT django")
        assert (failed.value.code, failed.value.temporary) == (100, True)
        assert ada.state == centrifuge.ClientState.CONNECTED

        async def answered() -> bool:
            with suppress(centrifuge.ReplyError):
                return bool((await ada.rpc("members", {"room": "tea"})).data["members"])
            return False

        await settled(answered, "Django answers again")
    await tasks_ended()
