"""The TLS of calls to a backend."""

import base64
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from wsfleet.config.file import ConfigError
from wsfleet.config.proxy import ProxyTLS


def client_context(config: ProxyTLS, path: str) -> ssl.SSLContext:
    """Return the TLS context for the section of the configuration at `path`.

    Raises:
        ConfigError: a certificate or key is missing or invalid.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["http/1.1"])
    if not (config.enabled and config.server_ca_pem):
        context.load_default_certs()
    if config.enabled:
        _configure(context, config, path)
    return context


def _configure(context: ssl.SSLContext, config: ProxyTLS, path: str) -> None:
    if config.insecure_skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if config.server_ca_pem:
        with _reading(f"{path}.server_ca_pem"), _file(config.server_ca_pem) as ca:
            context.load_verify_locations(ca)
    if config.cert_pem:
        key_pem = config.key_pem.get_secret_value()
        with (
            _reading(f"{path}.cert_pem, key_pem"),
            _file(config.cert_pem) as cert,
            _file(key_pem) as key,
        ):
            context.load_cert_chain(cert, key)


@contextmanager
def _reading(where: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ConfigError(where, [f"cannot be used: {error}"]) from None


@contextmanager
def _file(value: str) -> Iterator[str]:
    """Yield the name of a file with a PEM text; `value` is the text, or that in Base64, or a name.

    OpenSSL reads keys and certificates from files alone.
    """
    text = _pem_text(value)
    if text is None:
        yield value
        return
    with tempfile.NamedTemporaryFile() as file:  # only its owner may read it
        file.write(text)
        file.flush()
        yield file.name


def _pem_text(value: str) -> bytes | None:
    text = value.encode()
    if b"-----BEGIN" not in text:
        try:
            text = base64.b64decode(value, validate=True)
        except ValueError:
            return None
    return text if b"-----BEGIN" in text else None
