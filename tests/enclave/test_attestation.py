from __future__ import annotations

import dataclasses
import datetime as dt
import threading
import time
from pathlib import Path
from typing import Any

import cbor2
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from enclave import attestation
from enclave.attestation import Attestation, Clock, region_of
from enclave.counters import Counters
from enclave.nsm import NsmError
from infra.local_nsm import LocalNsm
from mrgc.attest.chain import load_root
from mrgc.attest.cose import parse_sign1
from mrgc.attest.document import AttestationDocument, Kind, parse_document
from mrgc.attest.verify import Policy, verify_enclave_document
from mrgc.errors import KeyBusyError
from mrgc.wire.enclave_protocol import AttestRequest, Use
from tests.enclave.stack import PCR0, PCRS, REPOSITORY
from tests.waiting import until


class BrokenNsm:
    """An NSM that answers as long as it is told to."""

    def __init__(self, inner: LocalNsm) -> None:
        self._inner = inner
        self.works = True

    def attest(self, *, public_key: bytes | None, user_data: bytes | None, nonce: bytes | None) -> bytes:
        """Sign, or fail."""
        if not self.works:
            raise NsmError("nsm request failed")
        return self._inner.attest(public_key=public_key, user_data=user_data, nonce=nonce)

    def random(self, n: int) -> bytes:
        """Return random bytes."""
        return self._inner.random(n)


def fields(document: bytes) -> AttestationDocument:
    """Read a document without judging it."""
    return parse_document(parse_sign1(document).payload, kind=Kind.ENCLAVE)


def test_the_document_for_kms_has_the_rsa_key_and_says_so(pki: Path) -> None:
    """user_data is {"mrgc": 1, "use": "kms"}, public_key the RSA-2048 key, and the chain verifies."""
    made = Attestation(LocalNsm(pki, PCRS), Counters())
    made.renew()
    document, key = made.recipient()
    found = fields(document)
    assert found.user_data is not None
    assert cbor2.loads(found.user_data) == {"mrgc": 1, "use": "kms"}
    assert found.nonce is None
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert found.public_key == spki
    assert key.key_size == 2_048
    policy = Policy(pcrs={0: PCR0}, nonce=None, max_age_s=60, require_public_key=True)
    root = load_root((pki / "root.pem").read_bytes())
    verify_enclave_document(document, root=root, at=dt.datetime.now(dt.UTC), policy=policy)


def test_each_document_for_kms_has_a_key_of_its_own(pki: Path) -> None:
    """A renewal replaces document and key together; one that fails replaces neither."""
    nsm = BrokenNsm(LocalNsm(pki, PCRS))
    made, seen = Attestation(nsm, Counters()), []
    for _ in range(2):
        made.renew()
        document, key = made.recipient()
        spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        assert fields(document).public_key == spki
        seen.append(spki)
    assert seen[0] != seen[1]
    last, nsm.works = made.recipient(), False
    with pytest.raises(NsmError):
        made.renew()
    assert made.recipient() is last
    assert repr(last) == f"Recipient(document of {len(last.document)} bytes)"


@pytest.mark.parametrize("use", list(Use))
def test_a_callers_document_never_has_the_rsa_key(pki: Path, use: Use) -> None:
    """Statement 11: the caller chooses the nonce and one of two uses, nothing else."""
    made = Attestation(LocalNsm(pki, PCRS), Counters())
    found = fields(made.statement(AttestRequest(b"n" * 16, use)))
    assert found.user_data is not None
    assert cbor2.loads(found.user_data) == {"mrgc": 1, "use": use.value}
    assert (found.nonce, found.public_key) == (b"n" * 16, None)
    assert not made.is_ready


def test_the_clock_is_the_documents_not_the_parents(pki: Path) -> None:
    """An NSM that lives in another year decides what time it is; before the first document there is none."""
    made = Attestation(LocalNsm(pki, PCRS, clock=lambda: 2_000_000_000.0), Counters())
    with pytest.raises(KeyBusyError):
        made.clock.now_s()
    made.renew()
    assert 0 <= made.clock.now_s() - 2_000_000_000 < 5


def test_the_clock_runs_between_documents_and_is_set_by_each() -> None:
    """Now is the newest timestamp plus the monotonic time since it was asked for."""
    clock, monotonic_s = Clock(), time.monotonic()
    clock.set(timestamp_s=1_000.0, monotonic_s=monotonic_s - 7)
    assert 1_007 <= clock.now_s() < 1_010
    clock.set(timestamp_s=500.0, monotonic_s=monotonic_s)
    assert 500 <= clock.now_s() < 503


def test_a_document_that_cannot_be_renewed_is_not_shown_to_kms_when_old(
    pki: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failing NSM is survived until the document is too old; then calls are busy, and recover with the NSM."""
    nsm = BrokenNsm(LocalNsm(pki, PCRS))
    counters = Counters()
    made = Attestation(nsm, counters)
    made.renew()
    nsm.works = False
    with pytest.raises(NsmError):
        made.renew()
    assert (counters.snapshot()["attestations"], counters.snapshot()["attestation_failures"]) == (2, 1)
    assert made.recipient()
    monkeypatch.setattr(attestation, "MAX_DOCUMENT_AGE_S", -1.0)
    assert not made.is_ready
    with pytest.raises(KeyBusyError):
        made.recipient()
    monkeypatch.setattr(attestation, "MAX_DOCUMENT_AGE_S", 110.0)
    nsm.works = True
    made.renew()
    assert made.recipient()


def test_a_thread_renews_the_document_and_outlives_failures(pki: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No request waits for the NSM: documents are replaced behind their backs, also after a failure."""
    monkeypatch.setattr(attestation, "RENEWAL_S", 0.01)
    monkeypatch.setattr(attestation, "RETRY_S", 0.01)
    nsm, counters, stop = BrokenNsm(LocalNsm(pki, PCRS)), Counters(), threading.Event()
    made = Attestation(nsm, counters)
    made.renew()
    first = made.recipient()
    thread = threading.Thread(target=made.keep_renewing, args=(stop,))
    thread.start()
    until(lambda: made.recipient() != first, within_s=10, what="a renewed document")
    nsm.works = False
    broken = made.recipient()
    nsm.works = True
    until(lambda: made.recipient() != broken, within_s=10, what="a document after the failure")
    stop.set()
    thread.join(10)
    assert counters.snapshot()["attestations"] >= 3


@pytest.mark.parametrize("name", ["blocky-nitro-prod", "blocky-nitro-debug", "evervault-prod-signed-eif"])
def test_a_genuine_document_names_its_region(name: str) -> None:
    """What AWS signed in us-east-1 says so in the leaf certificate's name."""
    made = REPOSITORY / "tests" / "vectors" / "attestation" / f"{name}.cbor"
    assert region_of(fields(made.read_bytes())) == "us-east-1"


@pytest.mark.parametrize("region", ["eu-west-1", "one-machine"])
def test_an_enclave_knows_its_region_from_its_document(pki: Path, region: str) -> None:
    """Nobody tells it; before the first document it knows none."""
    made = Attestation(LocalNsm(pki, PCRS, region=region), Counters())
    assert made.region == ""
    made.renew()
    assert made.region == region


@pytest.mark.parametrize("change", [{"module_id": "i-0-enc0"}, {"certificate": b"none"}])
def test_a_document_without_a_region_is_no_error(pki: Path, change: dict[str, Any]) -> None:
    """A certificate of another form names no region, and nothing else depends on it."""
    document = fields(LocalNsm(pki, PCRS, region="eu-west-1").attest(public_key=None, user_data=None, nonce=None))
    assert region_of(document) == "eu-west-1"
    assert region_of(dataclasses.replace(document, **change)) == ""


def test_a_document_of_another_shape_is_an_nsm_error(pki: Path) -> None:
    """A document without a readable time is worth nothing to the clock, and is not kept."""

    class Odd(BrokenNsm):
        def attest(self, *, public_key: bytes | None, user_data: bytes | None, nonce: bytes | None) -> bytes:
            return super().attest(public_key=public_key, user_data=user_data, nonce=nonce)[:-1]

    made = Attestation(Odd(LocalNsm(pki, PCRS)), Counters())
    with pytest.raises(NsmError):
        made.renew()
    assert not made.is_ready
