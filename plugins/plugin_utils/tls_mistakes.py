"""The mistakes in the files for TLS between the machines."""

from __future__ import annotations

import ipaddress

from cryptography import x509
from cryptography.x509.oid import NameOID

from .addresses import is_ip
from .inventory_hosts import Groups, Host, listed


def tls_mistakes(hosts: list[Host], groups: Groups) -> list[str]:
    """List missing files, and certificates of nodes that are not valid for their names."""
    redis = [host for host in hosts if host.name in groups.get("redis", ())]
    if len({bool(host.get("fleet_tls")) for host in redis}) > 1:
        return [
            "fleet_tls differs between the hosts of the group 'redis', which then cannot connect "
            "to each other: set it once, for the group 'all'."
        ]
    encrypted = [host for host in hosts if host.get("fleet_tls")]
    files = {name: path for host in encrypted for name, path in host.tls_files.items()}
    missing = [name for name, path in files.items() if not path.exists()]
    if missing:
        return [
            f"fleet_tls is on, but {files[missing[0]].parent} lacks {listed(missing)}: run "
            "playbooks/certificates.yml, which creates missing files, or put your own there."
        ]
    nodes = [host for host in encrypted if host.name in groups.get("wsnodes", ())]
    return [mistake for host in nodes for mistake in _name_mistakes(host)]


def _name_mistakes(host: Host) -> list[str]:
    """List the names of a node's host that its certificate lacks.

    HAProxy checks wsnode_host_name, and all other clients of the node check fleet_address.
    """
    file = host.tls_files[f"{host.name}.pem"]
    try:
        subjects = _subjects(file.read_bytes())
    except ValueError:  # encrypted by ansible-vault
        return []
    checked = {"wsnode_host_name": host.wsnode_host_name, "fleet_address": host.address}
    return [
        f"The certificate {file} is not valid for {name}, the {variable} of the host "
        f"'{host.name}', and no other machine would connect to its nodes: run "
        "playbooks/certificates.yml, which renews it, or put a certificate for that name there."
        for variable, name in checked.items()
        if not _is_valid_for(name, subjects)
    ]


def _is_valid_for(name: str, subjects: set[str]) -> bool:
    """Return whether a name, or a wildcard for its first part (RFC 9525), is among the subjects."""
    if is_ip(name):
        return str(ipaddress.ip_address(name)) in subjects
    return not {name.lower(), f"*.{name.lower().partition('.')[2]}"}.isdisjoint(subjects)


def _subjects(pem: bytes) -> set[str]:
    """Return the names and addresses that a certificate is valid for.

    Raises:
        ValueError: it is no certificate.
    """
    certificate = x509.load_pem_x509_certificate(pem)
    common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    subjects = {str(attribute.value).lower() for attribute in common}
    for extension in certificate.extensions:
        if isinstance(extension.value, x509.SubjectAlternativeName):
            subjects |= {str(name.value).lower() for name in extension.value}
    return subjects
