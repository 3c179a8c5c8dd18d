"""A self-signed certificate, so that TLS listeners work at once on a development machine."""

from __future__ import annotations

import datetime as dt
import ipaddress
import socket

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from services.cli.errors import CliError
from services.cli.secrets import DataDir, write_private

NAME = "weimq development"
"""Subject of the certificates made here; one with another subject is the operator's and stays."""

_VALID = dt.timedelta(days=397)
_RENEW_BEFORE = dt.timedelta(days=30)


def ensure(data: DataDir) -> None:
    """Make key and certificate of the data directory if there are none, or ours runs out within 30 days.

    Whoever has a real certificate puts it in the place of the two files.

    Raises:
        CliError: the directory can't be written.
    """
    now = dt.datetime.now(dt.UTC)
    if data.tls_certificate.exists() and data.tls_key.exists() and not _is_ours_and_ends(data, now + _RENEW_BEFORE):
        return
    try:
        data.tls_certificate.parent.mkdir(mode=0o700, exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _sign(key, now)
        write_private(
            data.tls_key,
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ).decode(),
        )
        write_private(data.tls_certificate, certificate.public_bytes(serialization.Encoding.PEM).decode())
    except OSError as error:
        raise CliError(
            f"Can't write {data.tls_certificate}: {error.strerror}.",
            "Check its owner and permissions, or use --data DIR.",
        ) from error


def _is_ours_and_ends(data: DataDir, before: dt.datetime) -> bool:
    try:
        certificate = x509.load_pem_x509_certificate(data.tls_certificate.read_bytes())
    except (OSError, ValueError):
        return False  # the edge says what is wrong with it
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return bool(names) and names[0].value == NAME and certificate.not_valid_after_utc < before


def _sign(key: ec.EllipticCurvePrivateKey, now: dt.datetime) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    hosts = {"localhost", socket.gethostname()} - {""}
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + _VALID)
        .add_extension(
            x509.SubjectAlternativeName(
                [
                    *map(x509.DNSName, sorted(hosts)),
                    x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
                    x509.IPAddress(ipaddress.ip_address("::1")),
                ]
            ),
            critical=False,
        )
        # Its own authority, so that clients can be given it as the one they trust.
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
