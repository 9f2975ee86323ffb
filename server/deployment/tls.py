"""Certificates for tests and intranets: an authority of one's own, and a server certificate signed by it.

Whoever runs a public server gives certificates of a public authority in ``fleet.toml`` instead.
"""

import ipaddress
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ...common.errors import ConfigError
from ...common.files import write_atomic

#: Flower's own helpers on the server's machine come by these names.
_LOCAL = ("localhost", "127.0.0.1", "::1")
_SIGNS_CERTIFICATES = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)
_AUTHORITY_DAYS = 3650
#: The longest that browsers and phones accept.
_SERVER_DAYS = 825


def make_certificates(folder: Path, names: Iterable[str], now: datetime | None = None) -> None:
    """Writes ``server.pem`` and ``server.key``, signed by the authority ``ca.pem`` of the folder, made on first use.

    Args:
      names: host names and IP addresses by which devices reach the server.
    """
    now = now or datetime.now(UTC)
    authority, authority_key = _authority(folder, now)
    key = ec.generate_private_key(ec.SECP384R1())
    alternatives = x509.SubjectAlternativeName([_name(name) for name in dict.fromkeys([*_LOCAL, *names])])
    certificate = (
        _builder("Fleetdraft SuperLink", key, now, _SERVER_DAYS)
        .issuer_name(authority.subject)
        .add_extension(alternatives, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA384())
    )
    _write_key(folder / "server.key", key)
    write_atomic(folder / "server.pem", certificate.public_bytes(Encoding.PEM))


def _authority(folder: Path, now: datetime) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    at, key_at = folder / "ca.pem", folder / "ca.key"
    if at.exists() and key_at.exists():
        stored = load_pem_private_key(key_at.read_bytes(), None)
        if not isinstance(stored, ec.EllipticCurvePrivateKey):
            raise ConfigError(f"{key_at} is not a key that this program made; sign the certificate by its own means")
        return x509.load_pem_x509_certificate(at.read_bytes()), stored
    key = ec.generate_private_key(ec.SECP384R1())
    builder = _builder("Fleetdraft authority of this fleet", key, now, _AUTHORITY_DAYS)
    certificate = (
        builder.issuer_name(_subject("Fleetdraft authority of this fleet"))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_SIGNS_CERTIFICATES, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )
    _write_key(key_at, key)
    write_atomic(at, certificate.public_bytes(Encoding.PEM))
    return certificate, key


def _builder(name: str, key: ec.EllipticCurvePrivateKey, now: datetime, days: int) -> x509.CertificateBuilder:
    """What both certificates have in common. Clocks may differ a little, so they begin to hold an hour ago."""
    return (
        x509.CertificateBuilder()
        .subject_name(_subject(name))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=days))
    )


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    write_atomic(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), mode=0o600)
