"""What the enclave says about itself, and what time it is.

Each document for KMS has an RSA key of its own, whose public half travels nowhere else. A thread renews both, so no
request waits for the NSM or for a key. Every document carries the hypervisor's time, which is the enclave's only clock:
the parent's is never asked (docs/spec.md §7).

Called by `enclave.operations`, `enclave.kms_handler` and `enclave.enclave_app`. May import: the standard library,
cryptography, mrgc.attest, mrgc.errors, mrgc.wire.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from enclave.counters import Counters
from enclave.nsm import Nsm, NsmError
from mrgc.attest.cose import parse_sign1
from mrgc.attest.document import AttestationDocument, Kind, parse_document
from mrgc.errors import AttestationError, KeyBusyError
from mrgc.wire import strict_cbor
from mrgc.wire.enclave_protocol import AttestRequest

logger = logging.getLogger(__name__)

#: docs/spec.md §7 allows 120 s at the moment of use; the rest is room for one KMS call with its retries.
MAX_DOCUMENT_AGE_S: Final = 110.0
RENEWAL_S: Final = 45.0  #: Twice within the age limit, so that one failed renewal is not noticed.
RETRY_S: Final = 5.0  #: After a failed renewal.
RSA_BITS: Final = 2_048  #: What AWS's own SDK sends; KMS documents no other size.
_LEAF_NAME: Final = re.compile(r"(?P<module>[^.]+)\.(?P<region>[a-z0-9-]{5,30})\.aws")


class Recipient(NamedTuple):
    """What a call to KMS shows of this enclave, and what opens the answer to that call."""

    document: bytes
    #: Made for this document: once it is replaced and its last call is answered, nothing opens recorded answers.
    private_key: rsa.RSAPrivateKey

    def __repr__(self) -> str:
        return f"Recipient(document of {len(self.document)} bytes)"


class _Made(NamedTuple):
    """A document, and when it was asked for."""

    document: bytes
    asked_s: float
    #: AWS region, empty if the document names none.
    region: str


class _Renewal(NamedTuple):
    """What is in use until the next renewal."""

    recipient: Recipient
    asked_s: float
    region: str


class Clock:
    """Unix time from the newest attestation document plus the monotonic time since."""

    def __init__(self) -> None:
        self._anchor: tuple[float, float] | None = None

    def set(self, *, timestamp_s: float, monotonic_s: float) -> None:
        """Anchor the clock.

        Args:
            timestamp_s: the document's time.
            monotonic_s: the monotonic clock just before the document was asked for, so that the clock is fast by at
                most the NSM's delay: a job expires early rather than late.
        """
        self._anchor = (timestamp_s, monotonic_s)

    def now_s(self) -> float:
        """Return unix seconds.

        Raises:
            KeyBusyError: no document was made yet.
        """
        if self._anchor is None:
            raise KeyBusyError("enclave has no time yet")
        timestamp_s, anchored_s = self._anchor
        return timestamp_s + (time.monotonic() - anchored_s)


class Attestation:
    """Makes this enclave's documents and the RSA keys that KMS answers to.

    Args:
        nsm: signs the documents.
        counters: gets attestations, attestation_failures and attestation_ms_total.
    """

    def __init__(self, nsm: Nsm, counters: Counters) -> None:
        self._nsm = nsm
        self._counters = counters
        self.clock = Clock()
        self._renewal: _Renewal | None = None

    @property
    def is_ready(self) -> bool:
        """Whether a document for KMS is at hand that is fresh enough to be used."""
        renewal = self._renewal
        return renewal is not None and time.monotonic() - renewal.asked_s <= MAX_DOCUMENT_AGE_S

    @property
    def region(self) -> str:
        """The AWS region that this enclave runs in, as the newest document for KMS says; empty if it does not."""
        return "" if self._renewal is None else self._renewal.region

    def recipient(self) -> Recipient:
        """Return the current document for KMS and its key; the document leaves the enclave only inside TLS to KMS.

        Raises:
            KeyBusyError: renewal has failed for so long that KMS may not be shown the last one.
        """
        renewal = self._renewal
        if renewal is None or not self.is_ready:
            raise KeyBusyError("no fresh attestation document")
        return renewal.recipient

    def statement(self, request: AttestRequest) -> bytes:
        """Make a document for a caller: its nonce, our user_data, and no public key (docs/spec.md §6).

        Raises:
            NsmError: the NSM made none.
        """
        return self._attest(use=str(request.use), public_key=None, nonce=request.nonce).document

    def renew(self) -> None:
        """Make the next document for KMS, with a key of its own; calls under way keep theirs.

        Raises:
            NsmError: the NSM made none; the previous one stays in use until it is too old.
        """
        # 0.1 s of CPU, during which other threads run: OpenSSL makes it without the interpreter's lock.
        key = rsa.generate_private_key(public_exponent=65_537, key_size=RSA_BITS)
        spki = key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        made = self._attest(use="kms", public_key=spki, nonce=None)
        self._renewal = _Renewal(Recipient(made.document, key), made.asked_s, made.region)

    def keep_renewing(self, stop: threading.Event) -> None:
        """Renew until `stop` is set; the body of the renewal thread."""
        wait_s = RENEWAL_S
        while not stop.wait(wait_s):
            try:
                self.renew()
                wait_s = RENEWAL_S
            except NsmError:
                logger.warning("attestation document was not renewed")
                wait_s = RETRY_S

    def _attest(self, *, use: str, public_key: bytes | None, nonce: bytes | None) -> _Made:
        asked_s, failures = time.monotonic(), 1
        user_data = strict_cbor.encode({"mrgc": 1, "use": use})
        try:
            made = self._nsm.attest(public_key=public_key, user_data=user_data, nonce=nonce)
            fields = _fields(made)
            self.clock.set(timestamp_s=fields.timestamp_ms / 1_000, monotonic_s=asked_s)
            failures = 0
        finally:
            elapsed_ms = round((time.monotonic() - asked_s) * 1_000)
            self._counters.add(attestations=1, attestation_failures=failures, attestation_ms_total=elapsed_ms)
        return _Made(made, asked_s, region_of(fields))


def region_of(document: AttestationDocument) -> str:
    """Return the region in the leaf certificate's common name, `<module id>.<region>.aws`; empty for another form."""
    try:
        subject = x509.load_der_x509_certificate(document.certificate).subject
        (name,) = (str(each.value) for each in subject.get_attributes_for_oid(NameOID.COMMON_NAME))
    except ValueError:
        return ""
    found = _LEAF_NAME.fullmatch(name)
    return found["region"] if found is not None and found["module"] == document.module_id else ""


def _fields(made: bytes) -> AttestationDocument:
    # Not verified: the NSM is this enclave's own hardware, and a chain of its own making would prove nothing to it.
    try:
        return parse_document(parse_sign1(made).payload, kind=Kind.ENCLAVE)
    except AttestationError as error:
        raise NsmError("nsm made a document of another shape") from error
