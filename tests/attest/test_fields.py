"""Documents that are signed, chained and current, with one field out of its rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

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
    Pki,
    Raw,
    accept,
    cbor_map,
    document,
    fields,
    sign,
)

REGISTERS: Final = {index: bytes([index + 1]) * 48 for index in range(16)}


def pcrs(value: Any) -> Callable[[Pki], bytes]:
    """Replace the PCRs."""
    return lambda pki: document(pki, pcrs=value)


def duplicated(name: str, value: Any) -> Callable[[Pki], bytes]:
    """Append a field, whether or not its name is already there."""
    return lambda pki: sign(cbor_map([*fields(pki).items(), (name, value)]), pki.leaf_key)


def raw_pcrs(pairs: list[tuple[Any, Any]]) -> Callable[[Pki], bytes]:
    """Write the PCRs as pairs, duplicates and all."""

    def make(pki: Pki) -> bytes:
        changed = [(name, Raw(cbor_map(pairs)) if name == "pcrs" else value) for name, value in fields(pki).items()]
        return sign(cbor_map(changed), pki.leaf_key)

    return make


FIELD_MUTANTS: Final = {
    "duplicate pcrs": (duplicated("pcrs", REGISTERS), DocumentFormatError),
    "duplicate nonce": (duplicated("nonce", b"x"), DocumentFormatError),
    "pcr 0 twice": (raw_pcrs([*REGISTERS.items(), (0, PCR0)]), DocumentFormatError),
    "duplicate in an unknown key": (duplicated("x", Raw(bytes.fromhex("a201000100"))), DocumentFormatError),
    "pcr index 32": (pcrs(REGISTERS | {32: PCR0}), DocumentFormatError),
    "pcr index -1": (pcrs(REGISTERS | {-1: PCR0}), DocumentFormatError),
    "pcr index text": (pcrs(REGISTERS | {"0": PCR0}), DocumentFormatError),
    "pcr index true": (pcrs(dict.fromkeys(range(2, 9), PCR0) | {True: PCR0}), DocumentFormatError),
    "pcr of 47 bytes": (pcrs(REGISTERS | {0: PCR0[:47]}), DocumentFormatError),
    "pcr of 32 bytes": (pcrs(REGISTERS | {0: PCR0[:32]}), DocumentFormatError),
    "pcr of 0 bytes": (pcrs(REGISTERS | {0: b""}), DocumentFormatError),
    "pcr is text": (pcrs(REGISTERS | {0: "1" * 48}), DocumentFormatError),
    "no pcrs": (pcrs({}), DocumentFormatError),
    "33 pcrs": (pcrs(dict.fromkeys(range(33), PCR0)), DocumentFormatError),
    "pcrs is a list": (pcrs([PCR0] * 16), DocumentFormatError),
    "pcrs absent": (lambda pki: document(pki, pcrs=ABSENT), DocumentFormatError),
    "timestamp 0": (lambda pki: document(pki, timestamp=0), DocumentFormatError),
    "timestamp in seconds": (lambda pki: document(pki, timestamp=NOW_S), DocumentFormatError),
    "timestamp text": (lambda pki: document(pki, timestamp=str(NOW_S * 1000)), DocumentFormatError),
    "timestamp bignum": (
        lambda pki: document(pki, timestamp=cbor2.CBORTag(2, (NOW_S * 1000).to_bytes(8, "big"))),
        DocumentFormatError,
    ),
    "timestamp float": (lambda pki: document(pki, timestamp=float(NOW_S * 1000)), DocumentFormatError),
    "timestamp true": (lambda pki: document(pki, timestamp=True), DocumentFormatError),
    "timestamp absent": (lambda pki: document(pki, timestamp=ABSENT), DocumentFormatError),
    "digest SHA256": (lambda pki: document(pki, digest="SHA256"), DocumentFormatError),
    "digest absent": (lambda pki: document(pki, digest=ABSENT), DocumentFormatError),
    "module_id empty": (lambda pki: document(pki, module_id=""), DocumentFormatError),
    "module_id bytes": (lambda pki: document(pki, module_id=b"i-0-enc0"), DocumentFormatError),
    "module_id absent": (lambda pki: document(pki, module_id=ABSENT), DocumentFormatError),
    "module_id with a line break": (lambda pki: document(pki, module_id="i-0-enc0\n"), DocumentFormatError),
    "module_id of a nitrotpm": (
        lambda pki: document(pki, module_id="i-0123456789abcdef0-tpm0000000000000000"),
        DocumentKindError,
    ),
    "module_id of neither kind": (lambda pki: document(pki, module_id="i-0123456789abcdef0"), DocumentKindError),
    "module_id of another enclave": (
        lambda pki: document(pki, module_id="i-0123456789abcdef0-enc0000000000000000"),
        DocumentKindError,
    ),
    "both kinds of pcrs": (lambda pki: document(pki, nitrotpm_pcrs=REGISTERS), DocumentKindError),
    "nitrotpm pcrs": (lambda pki: document(pki, nitrotpm_pcrs=REGISTERS, pcrs=ABSENT), DocumentKindError),
    "public_key of 1025 bytes": (lambda pki: document(pki, public_key=b"x" * 1025), DocumentFormatError),
    "user_data text": (lambda pki: document(pki, user_data="x"), DocumentFormatError),
    "nonce of 1025 bytes": (lambda pki: document(pki, nonce=b"x" * 1025), DocumentFormatError),
    "certificate absent": (lambda pki: document(pki, certificate=ABSENT), DocumentFormatError),
    "certificate empty": (lambda pki: document(pki, certificate=b""), DocumentFormatError),
    "certificate of 1025 bytes": (lambda pki: document(pki, certificate=b"x" * 1025), DocumentFormatError),
    "cabundle absent": (lambda pki: document(pki, cabundle=ABSENT), DocumentFormatError),
    "cabundle empty": (lambda pki: document(pki, cabundle=[]), DocumentFormatError),
    "cabundle entry of 1025 bytes": (
        lambda pki: document(pki, cabundle=[*pki.der[:-1], b"x" * 1025]),
        DocumentFormatError,
    ),
    "cabundle entry empty": (lambda pki: document(pki, cabundle=[*pki.der[:-1], b""]), DocumentFormatError),
    "cabundle of nine": (lambda pki: document(pki, cabundle=[pki.der[0]] * 9), DocumentFormatError),
    "payload is a list": (lambda pki: sign(cbor2.dumps([1]), pki.leaf_key), DocumentFormatError),
    "self-signed, seconds, no bundle": (
        lambda pki: document(pki, cabundle=ABSENT, timestamp=NOW_S, certificate=pki.der[0]),
        DocumentFormatError,
    ),
    "an undefined value": (duplicated("x", Raw(b"\xf7")), DocumentFormatError),
    "a shared reference": (duplicated("x", Raw(bytes.fromhex("d81c81d81d00"))), DocumentFormatError),
    "invalid utf-8": (duplicated("x", Raw(bytes.fromhex("62c328"))), DocumentFormatError),
}


@pytest.mark.parametrize("name", FIELD_MUTANTS)
def test_a_field_out_of_its_rule_is_refused(pki: Pki, name: str) -> None:
    """Mutants 13, 14, 18, 19, 20, 22 and 25, properly signed, each with its own error class."""
    make, expected = FIELD_MUTANTS[name]
    with pytest.raises(AttestationError) as caught:
        accept(make(pki), pki, policy=Policy(pcrs={}, nonce=None, max_age_s=300))
    assert type(caught.value) is expected
