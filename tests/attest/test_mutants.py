"""Every fault that a verifier must refuse, each by its number.

| mutants | fault | refused as |
|---|---|---|
| 1, 2, 4 | signature flipped, of another length, out of range; payload changed | BadSignature, DocumentFormatError |
| 3 | algorithm other, missing, or unprotected | DocumentFormatError |
| 5 | leaf of another document | BadSignature, DocumentKindError |
| 6 to 8 | bundle foreign, reversed, cut, empty, too long; namesake root | UntrustedChain, DocumentFormatError |
| 9 to 12 | validity, intermediate as leaf, leaf as issuer, path length | UntrustedChain |
| 13 to 17 | duplicates, PCR indices and lengths, trailing bytes, tags, depth and lengths | DocumentFormatError |
| 18 to 20 | timestamp, digest, module_id | DocumentFormatError, DocumentStale |
| 21, 22 | debug mode; NitroTPM in place of an enclave, or both | DebugDocument, DocumentKindError |
| 23, 24 | nonce; public key | NonceMismatch, PublicKeyError |
| 25 | self-signed; a genuine document with a damaged signature | DocumentFormatError, UntrustedChain, BadSignature |

Documents are made under a root of our own, so that the named fault is the only one: the tests `…_alone_is_no_fault`
show that documents of the same making without it are accepted.
"""

from __future__ import annotations

import tracemalloc
from typing import Final

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from infra.nsm_chain import Level
from mrgc.attest.chain import aws_root
from mrgc.attest.verify import (
    Policy,
    VerifiedDocument,
    VerifiedTpmDocument,
    verify_enclave_document,
    verify_nitrotpm_document,
)
from mrgc.errors import AttestationError, BadSignature
from tests.attest.conftest import Genuine
from tests.attest.forge import MODULE_ID, Pki, below_root, changed, document, level, make_pki
from tests.attest.mutants import (
    ARCHIVED,
    ASKED,
    KEYED,
    MUTANTS,
    NONCE,
    SECOND_LEAF,
    UNLIMITED,
    Case,
    deeper,
    flip,
    nitrotpm,
    spki,
)

#: What is measured beside the verifier itself: certificates, exceptions, the test's own copies.
MEMORY_BYTES: Final = 1 << 20
ANY_IMAGE: Final = Policy(pcrs={}, nonce=None, max_age_s=None)


def verify(case: Case) -> VerifiedDocument:
    """Judge a case as an enclave's document."""
    return verify_enclave_document(case.data, root=case.root, at=case.at, policy=case.policy)


def test_every_mutant_has_its_cases() -> None:
    """The table knows every number."""
    assert {int(name[:2]) for name in MUTANTS} == set(range(1, 26))


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_refused_for_its_fault(pki: Pki, name: str) -> None:
    """Statement 6: one fault, one class of refusal, and words that name that fault and no other."""
    mutant = MUTANTS[name]
    with pytest.raises(AttestationError, match=mutant.says) as caught:
        verify(mutant.case(pki))
    assert type(caught.value) is mutant.refusal


def test_mutant_01_every_byte_of_the_signature_counts(pki: Pki) -> None:
    """Statement 6: whichever of the 96 bytes is flipped."""
    for at in range(96):
        with pytest.raises(BadSignature):
            verify(Case(flip(at)(pki), pki.root))


@pytest.mark.parametrize("name", [name for name in MUTANTS if name.startswith("17")])
def test_mutant_17_is_refused_in_bounded_memory(pki: Pki, name: str) -> None:
    """Nothing is allocated for a length that is only claimed."""
    case = MUTANTS[name].case(pki)
    tracemalloc.start()
    try:
        with pytest.raises(AttestationError):
            verify(case)
        assert tracemalloc.get_traced_memory()[1] < MEMORY_BYTES
    finally:
        tracemalloc.stop()


def test_mutant_25_a_genuine_document_with_a_damaged_signature(genuine: dict[str, Genuine]) -> None:
    """Statement 6: signed by AWS, and one bit of the signature lost."""
    each = genuine["evervault-prod-signed-eif.cbor"]
    case = Case(each.data, aws_root(), at=each.at, policy=ANY_IMAGE)
    assert type(verify(case)) is VerifiedDocument
    damaged = each.data[:-1] + bytes([each.data[-1] ^ 1])
    with pytest.raises(BadSignature):
        verify(Case(damaged, case.root, at=case.at, policy=case.policy))


@pytest.mark.parametrize(
    "below",
    [
        pytest.param(below_root(), id="as genuine ones"),
        pytest.param([*UNLIMITED, level("leaf")], id="11 without path lengths"),
        pytest.param([*UNLIMITED, Level("extra", 3600, None, signs_data=False), SECOND_LEAF], id="11 an issuer more"),
        pytest.param(deeper(1), id="12 path length 1"),
    ],
)
def test_a_chain_that_mutants_are_made_of_alone_is_no_fault(below: list[Level]) -> None:
    """The chains of mutants 11 and 12, with an issuer where the mutant has none, or one more step allowed."""
    pki = make_pki(below)
    assert verify(Case(document(pki), pki.root)).document.module_id == MODULE_ID


def test_what_mutants_ask_for_alone_is_no_fault(pki: Pki) -> None:
    """The policies of mutants 9, 23 and 24 accept a document that meets them."""
    verify(Case(document(pki), pki.root, policy=ARCHIVED))
    verify(Case(document(pki, nonce=NONCE), pki.root, policy=ASKED))
    key = spki(rsa.generate_private_key(65537, 2048))
    assert verify(Case(changed(public_key=key)(pki), pki.root, policy=KEYED)).recipient_key is not None


def test_the_nitrotpm_document_alone_is_no_fault_for_its_own_verifier(pki: Pki) -> None:
    """Mutant 22's document is good for the other type, and only for that one."""
    case = nitrotpm(pki)
    verified = verify_nitrotpm_document(case.data, root=case.root, at=case.at, policy=case.policy)
    assert type(verified) is VerifiedTpmDocument
    assert not issubclass(VerifiedTpmDocument, VerifiedDocument)
