"""The COSE_Sign1 around a document: what is accepted, and mutants 2, 3, 15, 16 and 17."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import cbor2
import pytest

from mrgc.attest.verify import (
    verify_enclave_document,
)
from mrgc.errors import (
    AttestationError,
    BadSignature,
    DocumentFormatError,
)
from tests.attest.forge import (
    ABSENT,
    LIVE,
    NOW,
    PCR0,
    Pki,
    Raw,
    accept,
    cbor_map,
    document,
    fields,
    sign,
)

P384_ORDER: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973
ZERO: Final = bytes(48)


def indefinite(pki: Pki) -> bytes:
    """Return a document whose outer map has an indefinite length."""
    pairs = b"".join(cbor2.dumps(key) + cbor2.dumps(value) for key, value in fields(pki).items())
    return sign(b"\xbf" + pairs + b"\xff", pki.leaf_key)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(document, id="untagged"),
        pytest.param(lambda pki: b"\xd2" + document(pki), id="tag 18"),
        pytest.param(indefinite, id="indefinite map"),
        pytest.param(lambda pki: document(pki, public_key=ABSENT, user_data=ABSENT, nonce=ABSENT), id="no optionals"),
        pytest.param(lambda pki: document(pki, something_new={"x": [1, True, None]}), id="unknown key"),
        pytest.param(
            lambda pki: document(pki, public_key=b"k" * 1024, user_data=b"u" * 1024, nonce=b"n" * 1024), id="1024"
        ),
        pytest.param(lambda pki: document(pki, nonce=b""), id="empty nonce"),
    ],
)
def test_variants_that_nitro_may_send_are_accepted(pki: Pki, make: Callable[[Pki], bytes]) -> None:
    """A good document is accepted in every form that genuine ones have, or may have."""
    assert accept(make(pki), pki).document.pcrs[0] == PCR0


def test_bytearray_and_memoryview_are_accepted(pki: Pki) -> None:
    """The verifier takes whatever buffer the socket layer holds."""
    data = document(pki)
    for buffer in (bytearray(data), memoryview(data)):
        assert verify_enclave_document(buffer, root=pki.root, at=NOW, policy=LIVE).document.digest == "SHA384"


def with_signature(change: Callable[[bytes], bytes]) -> Callable[[Pki], bytes]:
    """Change the signature of a good document."""

    def make(pki: Pki) -> bytes:
        protected, unprotected, payload, good = cbor2.loads(document(pki))
        return cbor2.dumps([protected, unprotected, payload, change(good)])

    return make


def with_array(change: Callable[[list[Any]], Any]) -> Callable[[Pki], bytes]:
    """Change the four parts of a good document."""
    return lambda pki: cbor2.dumps(change(cbor2.loads(document(pki))))


def signed_header(protected: bytes, unprotected: Any = None) -> Callable[[Pki], bytes]:
    """Sign a good payload under another header."""
    return lambda pki: sign(cbor2.dumps(fields(pki)), pki.leaf_key, protected=protected, unprotected=unprotected)


COSE_MUTANTS: Final = {
    "signature of 95 bytes": (with_signature(lambda s: s[:-1]), DocumentFormatError),
    "signature of 97 bytes": (with_signature(lambda s: s + b"\0"), DocumentFormatError),
    "r = 0": (with_signature(lambda s: ZERO + s[48:]), BadSignature),
    "s = 0": (with_signature(lambda s: s[:48] + ZERO), BadSignature),
    "r = n": (with_signature(lambda s: P384_ORDER.to_bytes(48, "big") + s[48:]), BadSignature),
    "s > n": (with_signature(lambda s: s[:48] + b"\xff" * 48), BadSignature),
    "alg ES256": (signed_header(cbor2.dumps({1: -7})), DocumentFormatError),
    "alg missing": (signed_header(cbor2.dumps({})), DocumentFormatError),
    "alg empty": (signed_header(b""), DocumentFormatError),
    "alg unprotected": (signed_header(cbor2.dumps({}), {1: -35}), DocumentFormatError),
    "alg twice": (signed_header(bytes.fromhex("a1013822"), {1: -35}), DocumentFormatError),
    "second protected parameter": (signed_header(cbor2.dumps({1: -35, 2: [99]})), DocumentFormatError),
    "trailing byte": (lambda pki: document(pki) + b"\0", DocumentFormatError),
    "trailing byte in payload": (
        lambda pki: sign(cbor2.dumps(fields(pki)) + b"\xf6", pki.leaf_key),
        DocumentFormatError,
    ),
    "tag 17": (lambda pki: b"\xd1" + document(pki), DocumentFormatError),
    "tag 18 twice": (lambda pki: b"\xd2\xd2" + document(pki), DocumentFormatError),
    "tag 55799": (lambda pki: bytes.fromhex("d9d9f7") + document(pki), DocumentFormatError),
    "array of 3": (with_array(lambda parts: parts[:3]), DocumentFormatError),
    "array of 5": (with_array(lambda parts: [*parts, b""]), DocumentFormatError),
    "map instead of array": (with_array(lambda parts: dict(enumerate(parts))), DocumentFormatError),
    "payload is null": (with_array(lambda parts: [*parts[:2], None, parts[3]]), DocumentFormatError),
    "payload is text": (with_array(lambda parts: [*parts[:2], "x", parts[3]]), DocumentFormatError),
    "protected is a map": (with_array(lambda parts: [{1: -35}, *parts[1:]]), DocumentFormatError),
    "too large": (lambda pki: document(pki, user_data=b"x" * 0x3000), DocumentFormatError),
    "empty": (lambda _: b"", DocumentFormatError),
    "tag alone": (lambda _: b"\xd2", DocumentFormatError),
    "huge array": (lambda _: bytes.fromhex("9bffffffffffffffff"), DocumentFormatError),
    "huge string": (lambda _: bytes.fromhex("845bffffffffffffffff"), DocumentFormatError),
    "deep nesting": (lambda _: b"\x81" * 12_000, DocumentFormatError),
    "deep indefinite nesting": (lambda _: b"\x9f" * 12_000, DocumentFormatError),
    "deep extra key": (
        lambda pki: sign(cbor_map([*fields(pki).items(), ("x", Raw(b"\x81" * 900 + b"\0"))]), pki.leaf_key),
        DocumentFormatError,
    ),
}


@pytest.mark.parametrize("name", COSE_MUTANTS)
def test_a_broken_cose_structure_is_refused(pki: Pki, name: str) -> None:
    """Mutants 2, 3, 15, 16 and 17, each with its own error class."""
    make, expected = COSE_MUTANTS[name]
    with pytest.raises(AttestationError) as caught:
        accept(make(pki), pki)
    assert type(caught.value) is expected


def test_the_other_of_the_two_ecdsa_signatures_is_accepted(pki: Pki) -> None:
    """(r, n - s) verifies as well, which is why nothing may be keyed on document bytes."""
    protected, unprotected, payload, good = cbor2.loads(document(pki))
    other = (P384_ORDER - int.from_bytes(good[48:], "big")).to_bytes(48, "big")
    accept(cbor2.dumps([protected, unprotected, payload, good[:48] + other]), pki)
