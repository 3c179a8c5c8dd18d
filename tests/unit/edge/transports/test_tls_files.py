"""Certificate files: what is refused and why, and their replacement; the handshakes are in tests/contract."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

import pytest

from services.edge.transports.tls import Reloader, TlsError, TlsFiles, build_context
from tests.unit.edge.transports.certificates import Authority


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def handshake_name(context: ssl.SSLContext, authority: Authority) -> str:
    """Return the DNS name that a new client sees, by a handshake in memory."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    trusting = ssl.create_default_context(cafile=str(authority.path))
    trusting.check_hostname = False
    client = trusting.wrap_bio(to_client, to_server)
    server = context.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(10):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
        certificate = client.getpeercert() if client.version() and client.cipher() else None
        if certificate:
            names = certificate["subjectAltName"]
            return str(names[0][1])
    raise AssertionError("no handshake")


def files(authority: Authority, name: str = "one") -> TlsFiles:
    certificate, key = authority.issue(name, "server")
    return TlsFiles(certificate=str(certificate), key=str(key))


def test_context_speaks_tls_1_2_and_later(authority: Authority) -> None:
    assert build_context(files(authority)).minimum_version is ssl.TLSVersion.TLSv1_2


def test_missing_file_is_named(authority: Authority, tmp_path: Path) -> None:
    good = files(authority)
    with pytest.raises(TlsError, match=r"nowhere\.crt: No such file"):
        build_context(TlsFiles(certificate=str(tmp_path / "nowhere.crt"), key=good.key))


def test_key_of_another_certificate_is_refused(authority: Authority) -> None:
    good = files(authority)
    _, other_key = authority.issue("two")
    with pytest.raises(TlsError, match="the key is not that of the certificate"):
        build_context(TlsFiles(certificate=good.certificate, key=str(other_key)))


def test_encrypted_key_is_refused_without_a_prompt(authority: Authority) -> None:
    certificate, key = authority.issue("one", password=b"secret")
    with pytest.raises(TlsError, match="the key is encrypted"):
        build_context(TlsFiles(certificate=str(certificate), key=str(key)))


def test_text_that_is_no_certificate_is_refused(authority: Authority, tmp_path: Path) -> None:
    good = files(authority)
    (tmp_path / "text").write_text("hello")
    with pytest.raises(TlsError, match=r"certificate .*text"):
        build_context(TlsFiles(certificate=str(tmp_path / "text"), key=good.key))
    with pytest.raises(TlsError, match=r"client CA .*text"):
        build_context(
            TlsFiles(
                certificate=good.certificate,
                key=good.key,
                client_ca=str(tmp_path / "text"),
                client_certificates="required",
            )
        )


@pytest.mark.parametrize(("client_ca", "wanted"), [("", "required"), ("", "optional"), ("ca", "none")])
def test_client_certificates_and_their_authority_belong_together(
    authority: Authority, client_ca: str, wanted: str
) -> None:
    good = files(authority)
    with pytest.raises(TlsError, match="client CA"):
        build_context(
            TlsFiles(
                certificate=good.certificate,
                key=good.key,
                client_ca=client_ca,
                client_certificates=wanted,  # type: ignore[arg-type]  # one of the literals
            )
        )


def test_new_files_are_used_by_new_handshakes(authority: Authority) -> None:
    used = files(authority, "one")
    context = build_context(used)
    reloader = Reloader(context, used)
    assert handshake_name(context, authority) == "one"
    assert not reloader.check()
    authority.issue("two", "server")
    assert reloader.check()
    assert handshake_name(context, authority) == "two"
    assert not reloader.check()


def test_half_of_a_new_pair_is_reported_once_and_the_old_one_stays(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    used = files(authority, "one")
    context = build_context(used)
    reloader = Reloader(context, used)
    certificate, key = authority.issue("two")
    Path(used.certificate).write_bytes(certificate.read_bytes())
    with caplog.at_level(logging.WARNING):
        assert not reloader.check()
        assert not reloader.check()
    (record,) = caplog.records
    assert "not that of the certificate" in str(record.__dict__["error"])
    assert handshake_name(context, authority) == "one"
    Path(used.key).write_bytes(key.read_bytes())
    assert reloader.check()
    assert handshake_name(context, authority) == "two"


def test_missing_files_leave_the_old_certificate(authority: Authority) -> None:
    used = files(authority, "one")
    context = build_context(used)
    reloader = Reloader(context, used)
    Path(used.key).unlink()
    assert not reloader.check()
    assert handshake_name(context, authority) == "one"


def test_changed_client_authority_is_reported(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = files(authority)
    clients = Authority(tmp_path, "clients")
    used = TlsFiles(
        certificate=good.certificate, key=good.key, client_ca=str(clients.path), client_certificates="optional"
    )
    reloader = Reloader(build_context(used), used)
    clients.path.write_bytes(authority.path.read_bytes() + b"\n")
    with caplog.at_level(logging.WARNING):
        assert not reloader.check()
        assert not reloader.check()
    assert [record.getMessage() for record in caplog.records] == ["client CA changed, restart to use it"]
