from __future__ import annotations

import base64
import json
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from enclave import kms_handler, kms_transport
from enclave.attestation import Attestation
from enclave.counters import Counters
from enclave.credentials import CredentialStore
from enclave.key_cache import WrappedKey
from enclave.kms_handler import KmsHandler
from infra import cms_encrypt
from infra.local_nsm import LocalNsm
from mrgc.errors import AuthenticationError, KeyAccessError, KeyBusyError, MrgcError
from mrgc.wire.enclave_protocol import Credentials
from tests.enclave.faulty_kms import FaultyKms, Reply, answer, cleanly_cut, raw, refusal
from tests.enclave.stack import PCRS
from tests.waiting import until

ARN = "arn:aws:kms:eu-west-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"
WRAPPED = WrappedKey("acme", ARN, b"wrapped", (("mrgc:use", "job"), ("mrgc:tenant", "acme")))
KEY = bytes(range(32))


class Rig:
    """A handler, and the server that it is led to."""

    def __init__(self, server: FaultyKms, attestation: Attestation, *, ca: Path | None = None) -> None:
        self.server = server
        self.attestation = attestation
        if not attestation.is_ready:
            attestation.renew()
        self.credentials = CredentialStore()
        self.push(expires=int(time.time()) + 900)
        self.handler = KmsHandler(self.attestation, self.credentials, dial=server.dial, ca_file=str(ca or server.ca))

    def push(self, *, expires: int) -> None:
        """Give the handler credentials."""
        self.credentials.put(Credentials("AK", "secret", "session", expires))

    def good(self, key: bytes = KEY, **changes: Any) -> Reply:
        """Answer as KMS does; `changes` replace members, None removes them."""
        sealed = cms_encrypt.encrypt(key, self.attestation.recipient().private_key.public_key())
        members = {
            "KeyId": ARN,
            "EncryptionAlgorithm": "SYMMETRIC_DEFAULT",
            "CiphertextForRecipient": base64.b64encode(sealed).decode(),
        } | changes
        return answer(json.dumps({name: value for name, value in members.items() if value is not None}).encode())

    def error(self, *script: Reply) -> MrgcError:
        """Return what unwrapping raises."""
        self.server.script = list(script)
        with pytest.raises(MrgcError) as caught:
            self.handler.unwrap(WRAPPED)
        return caught.value


@pytest.fixture(scope="module")
def attestation(pki: Path) -> Attestation:
    """Make one RSA key for all these tests, which take less time than it lives."""
    return Attestation(LocalNsm(pki, PCRS), Counters())


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyKms]:
    """Run a server that answers what a test scripts."""
    with FaultyKms(tmp_path_factory.mktemp("faulty")) as started:
        yield started


@pytest.fixture
def server(running: FaultyKms) -> FaultyKms:
    """Return that server with nothing seen yet."""
    running.forget()
    return running


@pytest.fixture(scope="module")
def shared(running: FaultyKms, attestation: Attestation) -> Iterator[Rig]:
    """Lead one handler to that server."""
    made = Rig(running, attestation)
    yield made
    made.handler.close()


@pytest.fixture
def rig(shared: Rig, server: FaultyKms, monkeypatch: pytest.MonkeyPatch) -> Rig:
    """Return that handler; botocore's back-off takes no time, as the attempts are what is counted."""
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda _s: None)
    assert shared.server is server
    shared.handler.close()
    shared.push(expires=int(time.time()) + 900)
    shared.attestation.renew()
    return shared


def test_a_good_answer_opens(rig: Rig) -> None:
    """Decrypt carries ARN, context, algorithm and document, is signed by the pushed credentials, and opens."""
    rig.server.script = [rig.good()]
    assert rig.handler.unwrap(WRAPPED) == KEY
    (request,) = rig.server.requests
    document = request.body.pop("Recipient")
    assert request.body == {
        "KeyId": ARN,
        "CiphertextBlob": base64.b64encode(b"wrapped").decode(),
        "EncryptionContext": {"mrgc:use": "job", "mrgc:tenant": "acme"},
        "EncryptionAlgorithm": "SYMMETRIC_DEFAULT",
    }
    assert document["KeyEncryptionAlgorithm"] == "RSAES_OAEP_SHA_256"
    assert base64.b64decode(document["AttestationDocument"]) == rig.attestation.recipient().document
    assert request.header("Host") == "kms.eu-west-1.amazonaws.com"
    assert "Credential=AK/" in request.header("Authorization")
    assert request.header("X-Amz-Security-Token") == "session"


def test_a_call_under_way_keeps_the_key_of_its_document(rig: Rig) -> None:
    """A renewal between question and answer changes nothing: each document has a key of its own, and keeps it."""
    late = rig.server.honest(KEY, {"KeyId": ARN, "EncryptionAlgorithm": "SYMMETRIC_DEFAULT"})

    def after_a_renewal(sock: ssl.SSLSocket) -> bool:
        rig.attestation.renew()
        return late(sock)

    before = rig.attestation.recipient()
    rig.server.script = [after_a_renewal]
    assert rig.handler.unwrap(WRAPPED) == KEY
    assert rig.attestation.recipient().document != before.document


def test_an_answer_for_another_document_is_refused(rig: Rig) -> None:
    """What was encrypted for an earlier document of this very enclave opens no longer: its key is gone."""
    earlier = rig.good()
    rig.attestation.renew()
    assert isinstance(rig.error(earlier), AuthenticationError)


def test_a_connection_is_kept_and_new_credentials_are_used_at_once(rig: Rig) -> None:
    """Ten calls share one connection; the call after a push is signed with what was pushed."""
    rig.server.script = [rig.good()]
    for _ in range(10):
        rig.handler.unwrap(WRAPPED)
    rig.credentials.put(Credentials("NEWKEY", "secret", "", int(time.time()) + 900))
    rig.handler.unwrap(WRAPPED)
    assert rig.server.dials == ["kms.eu-west-1.amazonaws.com"]
    assert "Credential=NEWKEY/" in rig.server.requests[-1].header("Authorization")
    assert "x-amz-security-token" not in rig.server.requests[-1].head.lower()


def test_nothing_of_the_environment_moves_the_endpoint_or_the_credentials(
    server: FaultyKms, attestation: Attestation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Endpoint variables, proxies and ambient credentials are the parent's, and are ignored."""
    for name, value in {
        "AWS_ENDPOINT_URL_KMS": "http://127.0.0.1:9",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "AMBIENT",
        "AWS_SECRET_ACCESS_KEY": "ambient",
        "AWS_USE_FIPS_ENDPOINT": "false",
    }.items():
        monkeypatch.setenv(name, value)
    rig = Rig(server, attestation)
    server.script = [rig.good()]
    assert rig.handler.unwrap(WRAPPED) == KEY
    assert "Credential=AK/" in server.requests[0].header("Authorization")
    rig.handler.close()


@pytest.mark.parametrize(
    "changes",
    [
        {"Plaintext": base64.b64encode(KEY).decode()},
        {"Plaintext": base64.b64encode(KEY).decode(), "CiphertextForRecipient": None},
        {"CiphertextForRecipient": None},
        {"CiphertextForRecipient": ""},
        {"CiphertextForRecipient": base64.b64encode(b"\x30\x80").decode()},
        {"KeyId": ARN.replace("1234abcd", "00000000")},
        {"KeyId": None},
        {"EncryptionAlgorithm": "RSAES_OAEP_SHA_256"},
        {"EncryptionAlgorithm": None},
        {"key": KEY[:16]},
        {"key": KEY + KEY},
    ],
    ids=",".join,
)
def test_an_answer_that_is_not_kms_own_is_refused(rig: Rig, changes: dict[str, Any]) -> None:
    """Statement 3: a Plaintext, a missing or foreign ciphertext, another key, algorithm or length: auth."""
    assert type(rig.error(rig.good(**changes))) is AuthenticationError
    assert len(rig.server.requests) == 1


def test_an_empty_plaintext_is_what_kms_sends_and_is_accepted(rig: Rig) -> None:
    """docs/spec.md §7: Plaintext absent or empty."""
    rig.server.script = [rig.good(Plaintext="")]
    assert rig.handler.unwrap(WRAPPED) == KEY


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b'{"CiphertextForRecipient": 5}',
        b'{"CiphertextForRecipient": "YQ"}',
        b'{"KeyId": {"a": 1}, "CiphertextForRecipient": "YWE="}',
        b'{"a":' * 3_000 + b"1" + b"}" * 3_000,
    ],
    ids=lambda body: repr(body[:12]),
)
def test_a_body_of_another_shape_is_no_success(rig: Rig, body: bytes) -> None:
    """Botocore makes an empty success of a 200 it cannot parse, and trips over others; both are auth here."""
    assert type(rig.error(answer(body))) is AuthenticationError


@pytest.mark.parametrize(
    ("code", "status", "expected"),
    [
        ("InvalidCiphertextException", 400, AuthenticationError),
        ("IncorrectKeyException", 400, AuthenticationError),
        ("AccessDeniedException", 400, KeyAccessError),
        ("DisabledException", 400, KeyAccessError),
        ("NotFoundException", 400, KeyAccessError),
        ("KMSInvalidStateException", 400, KeyAccessError),
        ("ValidationException", 400, KeyAccessError),
        ("SomethingNewException", 400, KeyAccessError),
        ("ThrottlingException", 400, KeyBusyError),
        ("DependencyTimeoutException", 400, KeyBusyError),
        ("KMSInternalException", 500, KeyBusyError),
        ("SomethingNewException", 503, KeyBusyError),
        ("ExpiredTokenException", 400, KeyBusyError),
        ("UnrecognizedClientException", 400, KeyBusyError),
        ("InvalidSignatureException", 400, KeyBusyError),
        ("MissingAuthenticationTokenException", 400, KeyBusyError),
        ("IncompleteSignatureException", 400, KeyBusyError),
    ],
)
def test_every_refusal_of_kms_has_its_class(rig: Rig, code: str, status: int, expected: type[MrgcError]) -> None:
    """The table of docs/spec.md §7: the job's fault, the key's, or the fleet's; no text of KMS goes on."""
    error = rig.error(refusal(code, status=status))
    assert type(error) is expected
    assert "canary" not in str(error)


GOOD_BODY = b'{"KeyId": "' + ARN.encode() + b'"}'


@pytest.mark.parametrize(
    "fault",
    [
        answer(GOOD_BODY[:-5], length=len(GOOD_BODY)),
        cleanly_cut(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"),
        cleanly_cut(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n"),
        raw(b"HTTP/1.1 200 OK\r\nContent-Le"),
        raw(b"HTTP/1.1 200 OK\r\n\r\n" + GOOD_BODY),
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n2\r\n{}\r\n0\r\n\r\n"),
        raw(b""),
        raw(b"garbage\r\n\r\n"),
        answer(b"", length=400 << 20),
        answer(b" " * 65_537),
        answer(b"", length="-1"),
        answer(b"", length="0x10"),
        answer(b"", length="1_0"),
        refusal("InternalFailure", status=500),
    ],
    ids=["cut body", "cleanly cut body", "cleanly cut head", "cut head", "no length", "chunked", "closed", "garbage",
         "400 MiB", "64 KiB + 1", "-1", "0x10", "1_0", "500"],
)  # fmt: skip
def test_a_broken_answer_is_retried_and_never_a_success(rig: Rig, fault: Reply) -> None:
    """What the parent can do to the stream costs a retry; three times in a row it is key_busy."""
    rig.server.script = [fault, rig.good()]
    assert rig.handler.unwrap(WRAPPED) == KEY
    assert len(rig.server.requests) == 2
    assert rig.handler.is_ready
    assert type(rig.error(fault)) is KeyBusyError
    assert len(rig.server.requests) == 5


def test_a_refusal_is_not_retried(rig: Rig) -> None:
    """An answer of KMS that names the job or the key is final."""
    rig.error(refusal("AccessDeniedException"))
    assert len(rig.server.requests) == 1


def test_a_silent_peer_costs_the_read_timeout(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer is key_busy after three attempts, and kms is not ready until it answers again."""
    monkeypatch.setattr(kms_transport, "READ_TIMEOUT_S", 0.2)
    assert type(rig.error(rig.server.hang)) is KeyBusyError
    assert len(rig.server.requests) == 3
    assert not rig.handler.is_ready
    rig.server.script = [rig.good()]
    assert rig.handler.unwrap(WRAPPED) == KEY
    assert rig.handler.is_ready


def test_a_dripping_peer_is_cut_at_the_deadline(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte at a time keeps every read alive, but not the call: one deadline covers all attempts."""
    monkeypatch.setattr(kms_handler, "CALL_DEADLINE_S", 0.6)
    started = time.monotonic()
    assert type(rig.error(rig.server.drip)) is KeyBusyError
    assert 0.5 < time.monotonic() - started < 3


def test_a_certificate_of_another_authority_is_refused_without_a_retry(
    server: FaultyKms, attestation: Attestation, kms: Any
) -> None:
    """Statement 3: the wrong CA ends the call at the first dial; not a byte of the request is sent."""
    rig = Rig(server, attestation, ca=kms.ca)
    assert type(rig.error(rig.good())) is KeyBusyError
    assert len(server.dials) == 1
    assert server.requests == []
    rig.handler.close()


def test_a_certificate_of_another_host_is_refused(tmp_path: Path, attestation: Attestation) -> None:
    """Statement 3: a server with a good certificate for another region is not this region's KMS."""
    with FaultyKms(tmp_path, ("us-east-1",)) as server:
        rig = Rig(server, attestation)
        assert type(rig.error(rig.good())) is KeyBusyError
        assert (len(server.dials), server.requests) == (1, [])
        rig.handler.close()


def test_an_unreachable_proxy_is_dialled_three_times(rig: Rig) -> None:
    """A refused dial is retried like any other loss."""
    dials = []

    def refuse(host: str, _timeout_s: float) -> socket.socket:
        dials.append(host)
        raise ConnectionRefusedError

    handler = KmsHandler(rig.attestation, rig.credentials, dial=refuse, ca_file=str(rig.server.ca))
    with pytest.raises(KeyBusyError):
        handler.unwrap(WRAPPED)
    assert len(dials) == 3


def test_without_unexpired_credentials_nothing_is_sent(rig: Rig) -> None:
    """Expired or absent credentials are the fleet's fault: key_busy, at once."""
    rig.push(expires=int(time.time()) - 1)
    assert type(rig.error(rig.good())) is KeyBusyError
    assert not rig.handler.is_ready
    assert rig.server.dials == []


@pytest.mark.parametrize(
    "arn",
    [
        ARN.replace("eu-west-1", "mars-west-1"),
        ARN.replace("arn:aws:", "arn:aws-cn:"),
        ARN.replace("arn:aws:", "arn:aws-us-gov:"),
        ARN.replace("eu-west-1", "us-gov-west-1"),
    ],
)
def test_a_key_outside_the_images_regions_is_refused_without_a_dial(rig: Rig, arn: str) -> None:
    """A region of no proxy, or one that its partition does not have, is key_access."""
    with pytest.raises(KeyAccessError):
        rig.handler.unwrap(WRAPPED._replace(key_arn=arn))
    assert rig.server.dials == []


def test_an_idle_connection_that_the_peer_closed_is_noticed(rig: Rig) -> None:
    """A connection that ended while idle costs a new dial, not a failed attempt."""
    rig.server.script = [rig.good()]
    rig.handler.unwrap(WRAPPED)
    rig.server.hang_up()
    (idle,) = rig.handler._transport._idle["kms.eu-west-1.amazonaws.com"]
    until(lambda: not idle.is_quiet(), within_s=5, what="the end of the connection")
    assert rig.handler.unwrap(WRAPPED) == KEY
    assert (len(rig.server.dials), len(rig.server.requests)) == (2, 2)
