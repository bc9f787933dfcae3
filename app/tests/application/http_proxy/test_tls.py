"""The TLS of calls: whom a backend must convince, and what the node shows of itself."""

import base64
import ssl
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.certificates import make_certificate
from tests.support.http_backend import always, answer, running_backend
from wsfleet.application.http_proxy.backend import HTTPProxy
from wsfleet.application.http_proxy.tls import client_context
from wsfleet.application.port import BackendError, Client, RpcCall
from wsfleet.config.file import ConfigError
from wsfleet.config.proxy import Proxy, ProxyTLS

CALL = RpcCall(Client("id"), "m")
DATA = answer({"result": {"data": 1}})


class Pem(NamedTuple):
    """The files of a certificate, and of certificate and key; and the text of both."""

    cert: str
    key: str
    cert_text: str
    key_text: str


@pytest.fixture
def pem(processes: None, tmp_path: Path) -> Pem:
    """A certificate of the loopback, signed by itself."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make_certificate(cert, key)
    return Pem(str(cert), str(key), cert.read_text(), key.read_text())


def proxy(url: str, **tls: object) -> HTTPProxy:
    """Return a proxy with these keys of `http.tls`."""
    options = {"endpoint": url, "timeout": "5s", "http": {"tls": {"enabled": True, **tls}}}
    return HTTPProxy(Proxy.model_validate(options), "rpc.proxy")


async def test_a_ca_is_a_file_or_a_text(pem: Pem) -> None:
    """A file's name, PEM, or PEM in Base64; the system's CAs do not know the backend."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pem.key)
    async with running_backend(always(DATA), tls=server) as backend:
        for ca in (pem.cert, pem.cert_text, base64.b64encode(pem.cert_text.encode()).decode()):
            ours = proxy(backend.url, server_ca_pem=ca)
            assert await ours.rpc(CALL) == b"1"
            ours.close()
        for options in ({}, {"server_ca_pem": pem.cert, "server_name": "other"}):
            with pytest.raises(BackendError, match="certificate verify failed"):
                await proxy(backend.url, **options).rpc(CALL)
        ours = proxy(backend.url, insecure_skip_verify=True)
        assert await ours.rpc(CALL) == b"1"
        ours.close()


async def test_a_backend_may_demand_a_certificate(pem: Pem) -> None:
    """The node's own, with its key."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pem.key)
    server.load_verify_locations(pem.cert)
    server.verify_mode = ssl.CERT_REQUIRED
    async with running_backend(always(DATA), tls=server) as backend:
        ours = proxy(backend.url, server_ca_pem=pem.cert, cert_pem=pem.cert, key_pem=pem.key_text)
        assert await ours.rpc(CALL) == b"1"
        ours.close()
        with pytest.raises(BackendError):
            await proxy(backend.url, server_ca_pem=pem.cert).rpc(CALL)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"server_ca_pem": "/nowhere/ca.pem"}, "server_ca_pem"),
        ({"server_ca_pem": "-----BEGIN CERTIFICATE-----\nx"}, "server_ca_pem"),
        ({"cert_pem": "/nowhere/cert.pem", "key_pem": "/nowhere/key.pem"}, "cert_pem"),
    ],
)
def test_a_missing_or_invalid_file_is_named(options: dict[str, str], key: str) -> None:
    """Before the node starts."""
    config = ProxyTLS.model_validate({"enabled": True} | options)
    with pytest.raises(ConfigError, match=rf"^client\.proxy\.connect\.http\.tls\.{key}"):
        client_context(config, "client.proxy.connect.http.tls")
