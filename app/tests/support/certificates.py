"""Certificates of the loopback."""

import subprocess
from pathlib import Path


def make_certificate(certificate: Path, with_key: Path, *names: str) -> None:
    """Make a certificate of the loopback, by itself and in one file with its key.

    It is self-signed: a client that trusts it as a CA trusts only this server.
    """
    request = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    others = "".join(f",DNS:{name}" for name in names)
    subject = f"-subj /CN=loopback -addext subjectAltName=IP:127.0.0.1{others}"
    files = ["-keyout", str(with_key), "-out", str(certificate)]
    subprocess.run([*request.split(), *subject.split(), *files], check=True, capture_output=True)
    with_key.write_text(certificate.read_text() + with_key.read_text())
