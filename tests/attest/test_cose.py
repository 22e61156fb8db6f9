"""The COSE_Sign1 around a document: what is accepted, and what is not of its form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import cbor2
import pytest

from mrgc.attest.verify import verify_enclave_document
from mrgc.errors import DocumentFormatError
from tests.attest.forge import (
    ABSENT,
    LIVE,
    NOW,
    P384_ORDER,
    PCR0,
    Make,
    Pki,
    accept,
    changed,
    document,
    fields,
    sign,
    with_array,
    with_header,
)


def endless(value: Any) -> bytes:
    """Encode maps, lists and byte strings with indefinite lengths, all the way down."""
    if isinstance(value, dict):
        return b"\xbf" + b"".join(cbor2.dumps(key) + endless(each) for key, each in value.items()) + b"\xff"
    if isinstance(value, list):
        return b"\x9f" + b"".join(map(endless, value)) + b"\xff"
    if isinstance(value, bytes):
        return b"\x5f" + cbor2.dumps(value[:20]) + cbor2.dumps(value[20:]) + b"\xff"
    return cbor2.dumps(value)


def with_endless_map(pki: Pki) -> bytes:
    """Return a document whose outer map alone has an indefinite length, as genuine ones of 2026."""
    pairs = b"".join(cbor2.dumps(key) + cbor2.dumps(value) for key, value in fields(pki).items())
    return sign(b"\xbf" + pairs + b"\xff", pki.leaf_key)


def wholly_endless(pki: Pki) -> bytes:
    """Return a document in which everything that may have an indefinite length has one."""
    return endless(cbor2.loads(sign(endless(fields(pki)), pki.leaf_key)))


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(document, id="untagged"),
        pytest.param(lambda pki: b"\xd2" + document(pki), id="tag 18"),
        pytest.param(with_endless_map, id="indefinite map"),
        pytest.param(wholly_endless, id="indefinite everything"),
        pytest.param(changed(public_key=ABSENT, user_data=ABSENT, nonce=ABSENT), id="absent optionals"),
        pytest.param(changed(public_key=None, user_data=None, nonce=None), id="null optionals"),
        pytest.param(changed(something_new={"x": [1, True, None]}), id="unknown key"),
        pytest.param(changed(public_key=b"k" * 1024, user_data=b"u" * 1024, nonce=b"n" * 1024), id="1024-byte fields"),
        pytest.param(changed(nonce=b""), id="empty nonce"),
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


BROKEN: Final[dict[str, Make]] = {
    "second protected parameter": with_header(cbor2.dumps({1: -35, 2: [99]})),
    "map instead of array": with_array(lambda parts: dict(enumerate(parts))),
    "payload is null": with_array(lambda parts: [*parts[:2], None, parts[3]]),
    "payload is text": with_array(lambda parts: [*parts[:2], "x", parts[3]]),
    "protected is a map": with_array(lambda parts: [{1: -35}, *parts[1:]]),
    "unprotected is a list": with_array(lambda parts: [parts[0], [], *parts[2:]]),
    "signature is text": with_array(lambda parts: [*parts[:3], "x" * 96]),
    "empty": lambda _: b"",
    "tag alone": lambda _: b"\xd2",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_cose_structure_is_refused(pki: Pki, name: str) -> None:
    """What is not exactly a COSE_Sign1 under ES384 is refused for its form; more in test_mutants."""
    with pytest.raises(DocumentFormatError):
        accept(BROKEN[name](pki), pki)


def test_the_other_of_the_two_ecdsa_signatures_is_accepted(pki: Pki) -> None:
    """(r, n - s) verifies as well, which is why nothing may be keyed on document bytes."""
    protected, unprotected, payload, good = cbor2.loads(document(pki))
    other = (P384_ORDER - int.from_bytes(good[48:], "big")).to_bytes(48, "big")
    accept(cbor2.dumps([protected, unprotected, payload, good[:48] + other]), pki)
