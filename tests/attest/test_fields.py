"""Documents that are signed, chained and current, with one field out of its rule."""

from __future__ import annotations

from typing import Final

import cbor2
import pytest

from mrgc.attest.verify import (
    Policy,
)
from mrgc.errors import (
    AttestationError,
    DocumentFormatError,
    DocumentKindError,
)
from tests.attest.forge import (
    ABSENT,
    NOW_S,
    PCR0,
    REGISTERS,
    Pki,
    Raw,
    accept,
    changed,
    document,
    sign,
    with_field,
)

OUT_OF_RULE: Final = {
    "pcr of 32 bytes": (changed(pcrs=REGISTERS | {0: PCR0[:32]}), DocumentFormatError),
    "pcrs is a list": (changed(pcrs=[PCR0] * 16), DocumentFormatError),
    "pcrs absent": (changed(pcrs=ABSENT), DocumentFormatError),
    "timestamp bignum": (
        changed(timestamp=cbor2.CBORTag(2, (NOW_S * 1000).to_bytes(8, "big"))),
        DocumentFormatError,
    ),
    "timestamp float": (changed(timestamp=float(NOW_S * 1000)), DocumentFormatError),
    "timestamp true": (changed(timestamp=True), DocumentFormatError),
    "timestamp absent": (changed(timestamp=ABSENT), DocumentFormatError),
    "digest absent": (changed(digest=ABSENT), DocumentFormatError),
    "module_id bytes": (changed(module_id=b"i-0-enc0"), DocumentFormatError),
    "module_id absent": (changed(module_id=ABSENT), DocumentFormatError),
    "module_id with a line break": (changed(module_id="i-0-enc0\n"), DocumentFormatError),
    "module_id of neither kind": (changed(module_id="i-0123456789abcdef0"), DocumentKindError),
    "module_id of another enclave": (changed(module_id="i-0123456789abcdef0-enc0000000000000000"), DocumentKindError),
    "public_key of 1025 bytes": (changed(public_key=b"x" * 1025), DocumentFormatError),
    "user_data text": (changed(user_data="x"), DocumentFormatError),
    "nonce of 1025 bytes": (changed(nonce=b"x" * 1025), DocumentFormatError),
    "certificate absent": (changed(certificate=ABSENT), DocumentFormatError),
    "certificate empty": (changed(certificate=b""), DocumentFormatError),
    "certificate of 1025 bytes": (changed(certificate=b"x" * 1025), DocumentFormatError),
    "cabundle absent": (changed(cabundle=ABSENT), DocumentFormatError),
    "cabundle entry empty": (lambda pki: document(pki, cabundle=[*pki.der[:-1], b""]), DocumentFormatError),
    "cabundle of nine": (lambda pki: document(pki, cabundle=[pki.der[0]] * 9), DocumentFormatError),
    "payload is a list": (lambda pki: sign(cbor2.dumps([1]), pki.leaf_key), DocumentFormatError),
    "an undefined value": (with_field("x", Raw(b"\xf7")), DocumentFormatError),
    "a shared reference": (with_field("x", Raw(bytes.fromhex("d81c81d81d00"))), DocumentFormatError),
    "invalid utf-8": (with_field("x", Raw(bytes.fromhex("62c328"))), DocumentFormatError),
}


@pytest.mark.parametrize("name", OUT_OF_RULE)
def test_a_field_out_of_its_rule_is_refused(pki: Pki, name: str) -> None:
    """Properly signed, and each refused with its own error class; more in test_mutants."""
    make, expected = OUT_OF_RULE[name]
    with pytest.raises(AttestationError) as caught:
        accept(make(pki), pki, policy=Policy(pcrs={}, nonce=None, max_age_s=300))
    assert type(caught.value) is expected
