"""TLS of a listener: its context, and certificates that are replaced while it runs."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import ssl
from typing import Literal

logger = logging.getLogger(__name__)

ClientCertificates = Literal["none", "optional", "required"]

_VERIFY = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}

_Stamp = tuple[tuple[int, int, int] | None, ...]
"""Modification time, size and inode of each file; None: it is not there."""


class TlsError(Exception):
    """Certificate files that can't be used."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """The files of a listener, in PEM."""

    certificate: str
    """Path of the certificate, followed by the intermediate ones."""
    key: str
    """Path of its private key, not encrypted."""
    client_ca: str = ""
    """Path of the certificates that sign those of clients; empty: clients have none."""
    client_certificates: ClientCertificates = "none"
    """Whether a client must, may or can't identify itself by a certificate."""


def build_context(files: TlsFiles) -> ssl.SSLContext:
    """Return the context of a listener: TLS 1.2 or later.

    Raises:
        TlsError: a file can't be used; the text names it.
    """
    if (files.client_certificates != "none") != bool(files.client_ca):
        raise TlsError(
            "client certificates need a client CA file, and a client CA file needs them optional or required"
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Renegotiation lets a client ask for handshakes without end; compression leaks (CRIME).
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE
    _load_certificate(context, files)
    if files.client_ca:
        try:
            context.load_verify_locations(cafile=files.client_ca)
        except (OSError, ValueError) as error:
            raise TlsError(f"client CA {files.client_ca}: {_text(error)}") from error
    context.verify_mode = _VERIFY[files.client_certificates]
    return context


def _load_certificate(context: ssl.SSLContext, files: TlsFiles) -> None:
    for path in (files.certificate, files.key):
        try:
            with open(path, "rb"):  # noqa: PTH123 - OpenSSL's own message does not name the file
                pass
        except OSError as error:
            raise TlsError(f"{path}: {error.strerror}") from error
    try:
        context.load_cert_chain(files.certificate, files.key, password=_no_password)
    except (OSError, ValueError) as error:
        raise TlsError(f"certificate {files.certificate} with key {files.key}: {_text(error)}") from error


def _no_password() -> str:
    # Without it OpenSSL would ask on the terminal for the password of an encrypted key.
    raise ValueError("the key is encrypted")


def _text(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    if reason == "KEY_VALUES_MISMATCH":
        return "the key is not that of the certificate"
    return str(reason or error)


class Reloader:
    """Loads certificate and key again when their files change; new handshakes use them, connections stay.

    What clients are checked against (`client_ca`) is read once: a live context can only learn authorities, not forget
    them, so that a change of it needs a restart; it is logged.
    """

    def __init__(self, context: ssl.SSLContext, files: TlsFiles) -> None:
        """Start from what `build_context` has loaded."""
        self._context = context
        self._files = files
        self._stamp = _stamp(files.certificate, files.key)
        self._ca_stamp = _stamp(files.client_ca) if files.client_ca else ()

    def check(self) -> bool:
        """Look at the files; return whether new ones were loaded.

        New files that can't be used are logged once, and the old certificate stays.
        """
        self._check_ca()
        # Taken before loading: a change in the middle is seen by the next check.
        stamp = _stamp(self._files.certificate, self._files.key)
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        try:
            # First into a context that nobody uses: half of a wrong pair would be in force at once.
            _load_certificate(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), self._files)
            _load_certificate(self._context, self._files)
        except TlsError as error:
            logger.warning("certificate not reloaded, the old one stays", extra={"error": str(error)})
            return False
        logger.info("certificate reloaded", extra={"certificate": self._files.certificate})
        return True

    async def run(self, interval_s: float = 10.0) -> None:
        """Check for ever; ends by cancellation."""
        while True:
            await asyncio.sleep(interval_s)
            self.check()

    def _check_ca(self) -> None:
        if not self._files.client_ca:
            return
        stamp = _stamp(self._files.client_ca)
        if stamp != self._ca_stamp:
            self._ca_stamp = stamp
            logger.warning("client CA changed, restart to use it", extra={"client_ca": self._files.client_ca})


def _stamp(*paths: str) -> _Stamp:
    stamps: list[tuple[int, int, int] | None] = []
    for path in paths:
        try:
            status = os.stat(path)  # noqa: PTH116 - follows the links by which Kubernetes swaps secrets
        except OSError:
            stamps.append(None)
        else:
            stamps.append((status.st_mtime_ns, status.st_size, status.st_ino))
    return tuple(stamps)
