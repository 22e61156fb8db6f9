"""Twenty-five faults of attestation documents, each alone in a document that is otherwise good and signed anew.

The table of `tests/attest/test_mutants.py`: an id that begins with the mutant's number, what to verify, and the class
and words of the refusal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import cbor2
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from infra.nsm_chain import Issuer, Level, issue
from mrgc.attest.chain import Root
from mrgc.attest.verify import Policy
from mrgc.errors import (
    AttestationError,
    BadSignature,
    DebugDocument,
    DocumentFormatError,
    DocumentKindError,
    DocumentStale,
    NonceMismatch,
    PublicKeyError,
    UntrustedChain,
)
from tests.attest.forge import (
    ABSENT,
    LIVE,
    MODULE_ID,
    NOW,
    NOW_S,
    P384_ORDER,
    PCR0,
    REGISTERS,
    Make,
    Pki,
    Raw,
    below_root,
    cbor_map,
    changed,
    document,
    fields,
    level,
    make_pki,
    sign,
    with_array,
    with_field,
    with_header,
    with_pcr_pairs,
    with_signature,
)

ZERO: Final = bytes(48)
OTHER_PCR0: Final = b"\x22" * 48
NONCE: Final = b"n" * 32
ASKED: Final = Policy(pcrs={0: PCR0}, nonce=NONCE, max_age_s=300)
ARCHIVED: Final = Policy(pcrs={0: PCR0}, nonce=None, max_age_s=None)
KEYED: Final = Policy(pcrs={0: PCR0}, nonce=None, max_age_s=300, require_public_key=True)
TPM_MODULE: Final = "i-0123456789abcdef0-tpm0000000000000000"


@dataclass(frozen=True)
class Case:
    """What a verifier is asked."""

    data: bytes
    root: Root
    at: datetime = NOW
    policy: Policy = LIVE


@dataclass(frozen=True)
class Mutant:
    """One fault, and how it is refused: by which class, with which words."""

    case: Callable[[Pki], Case]
    refusal: type[AttestationError]
    says: str


def mutant(make: Make, refusal: type[AttestationError], says: str, **asked: Any) -> Mutant:
    """Judge a document under the good chain's root."""
    return Mutant(lambda pki: Case(make(pki), pki.root, **asked), refusal, says)


def chain_mutant(below: list[Level], says: str) -> Mutant:
    """Judge a good document under a chain of other levels."""

    def case(_: Pki) -> Case:
        pki = make_pki(below)
        return Case(document(pki), pki.root)

    return Mutant(case, UntrustedChain, says)


def flip(at: int) -> Make:
    """Flip one bit of one byte of the signature."""
    return with_signature(lambda good: good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])


def unsigned(**changes: Any) -> Make:
    """Change fields of a good document, and keep its signature."""

    def make(pki: Pki) -> bytes:
        protected, unprotected, _, signature = cbor2.loads(document(pki))
        return cbor2.dumps([protected, unprotected, cbor2.dumps(fields(pki, **changes)), signature])

    return make


def unbound_key(pki: Pki) -> bytes:
    """Put another public key into a document that was signed with one."""
    own, other = (spki(rsa.generate_private_key(65537, 2048)) for _ in range(2))
    return document(pki, public_key=own).replace(own, other)


def another_leaf(pki: Pki, *, common_name: str) -> bytes:
    """Put in a leaf that the same instance's certificate issued for another key; the signature stays the first's."""
    instance = pki.chain[-2]
    key = ec.generate_private_key(ec.SECP384R1())
    wanted = level("leaf", common_name=common_name)
    leaf = issue(wanted, key.public_key(), issuer=instance.certificate, signer=instance.key, now_s=NOW_S)
    return document(pki, certificate=leaf.public_bytes(Encoding.DER))


def bundle(change: Callable[[list[bytes]], list[bytes]]) -> Make:
    """Change the cabundle."""
    return lambda pki: document(pki, cabundle=change(pki.der[:-1]))


def namesake(pki: Pki) -> Case:
    """A self-made root with the same subject, and everything below it."""
    other = make_pki()
    assert other.chain[0].certificate.subject == pki.chain[0].certificate.subject
    return Case(document(other), pki.root)


def under_foreign_bundle(pki: Pki) -> bytes:
    """The intermediates of another chain with the same names, below the right root."""
    return document(pki, cabundle=[pki.der[0], *make_pki().der[1:-1]])


def judged_after(seconds: float) -> Mutant:
    """A document of that very moment, under certificates that are not of it."""
    at = NOW + timedelta(seconds=seconds)
    make = changed(timestamp=int(at.timestamp() * 1000))
    return mutant(make, UntrustedChain, "not valid at this time", at=at, policy=ARCHIVED)


def as_leaf(**changes: Any) -> list[Level]:
    """End the chain one level early: the instance's certificate in the leaf's place."""
    return [*below_root()[:2], level("instance", common_name=f"{MODULE_ID}.local.aws", **changes)]


#: No path length is in the way, so that who may issue is the only question.
UNLIMITED: Final = [level(name, path_length=None) for name in ("regional", "zonal", "instance")]
SECOND_LEAF: Final = level("leaf", common_name=f"{MODULE_ID}.second")


def deeper(path_length: int) -> list[Level]:
    """One more issuer below the instance's, which allows so many below itself."""
    issuers = (("regional", 3), ("zonal", 2), ("instance", path_length))
    extra = Level("extra", 3600, None, signs_data=False)
    return [*(level(name, path_length=length) for name, length in issuers), extra, level("leaf")]


def duplicate_in_pcrs(key: Any) -> Make:
    """Name PCR0 a second time."""
    return with_pcr_pairs([*REGISTERS.items(), (key, PCR0)])


def spki(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    """Return the DER SubjectPublicKeyInfo."""
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def nitrotpm(pki: Pki, **changes: Any) -> Case:
    """An instance's document under a leaf of its own."""
    leaf = level("leaf", common_name=f"{TPM_MODULE}.local.aws")
    tpm = Pki((*pki.chain[:-1], *_issued(pki, leaf)))
    return Case(
        document(tpm, **({"module_id": TPM_MODULE, "pcrs": ABSENT, "nitrotpm_pcrs": REGISTERS} | changes)), tpm.root
    )


def _issued(pki: Pki, wanted: Level) -> tuple[Issuer, ...]:
    key = ec.generate_private_key(ec.SECP384R1())
    above = pki.chain[-2]
    return (Issuer(issue(wanted, key.public_key(), issuer=above.certificate, signer=above.key, now_s=NOW_S), key),)


def self_signed(pki: Pki, **changes: Any) -> bytes:
    """A certificate that only vouches for itself, and no chain."""
    (alone,) = make_pki([]).chain
    leaf = {"certificate": alone.certificate.public_bytes(Encoding.DER), "cabundle": ABSENT}
    return sign(cbor2.dumps(fields(pki, **leaf | changes)), alone.key)


FORMAT: Final = DocumentFormatError
SIGNATURES: Final = {
    **{f"01 signature byte {at} flipped": mutant(flip(at), BadSignature, "did not sign") for at in (0, 47, 48, 95)},
    "02 signature of 95 bytes": mutant(with_signature(lambda s: s[:-1]), FORMAT, "not 96"),
    "02 signature of 97 bytes": mutant(with_signature(lambda s: s + b"\0"), FORMAT, "not 96"),
    "02 r = 0": mutant(with_signature(lambda s: ZERO + s[48:]), BadSignature, "range"),
    "02 s = 0": mutant(with_signature(lambda s: s[:48] + ZERO), BadSignature, "range"),
    "02 r = n": mutant(with_signature(lambda s: P384_ORDER.to_bytes(48, "big") + s[48:]), BadSignature, "range"),
    "02 s = n": mutant(with_signature(lambda s: s[:48] + P384_ORDER.to_bytes(48, "big")), BadSignature, "range"),
    "02 r > n": mutant(with_signature(lambda s: b"\xff" * 48 + s[48:]), BadSignature, "range"),
    "02 s > n": mutant(with_signature(lambda s: s[:48] + b"\xff" * 48), BadSignature, "range"),
    "03 alg is ES256": mutant(with_header(cbor2.dumps({1: -7})), FORMAT, "exactly ES384"),
    "03 alg missing": mutant(with_header(cbor2.dumps({})), FORMAT, "exactly ES384"),
    "03 protected header empty": mutant(with_header(b""), FORMAT, "exactly ES384"),
    "03 alg unprotected": mutant(with_header(cbor2.dumps({}), {1: -35}), FORMAT, "exactly ES384"),
    "03 alg in both headers": mutant(with_header(cbor2.dumps({1: -35}), {1: -35}), FORMAT, "exactly ES384"),
    "04 payload's PCR0 changed": mutant(
        unsigned(pcrs=REGISTERS | {0: OTHER_PCR0}),
        BadSignature,
        "did not sign",
        policy=Policy(pcrs={0: OTHER_PCR0}, nonce=None, max_age_s=300),
    ),
    "04 payload's public_key replaced": mutant(unbound_key, BadSignature, "did not sign", policy=KEYED),
}
CHAINS: Final = {
    "05 leaf of another key of this module": mutant(
        lambda pki: another_leaf(pki, common_name=f"{MODULE_ID}.local.aws"), BadSignature, "did not sign"
    ),
    "05 leaf of another module": mutant(
        lambda pki: another_leaf(pki, common_name="i-0fedcba9876543210-enc0123456789abcdef.local.aws"),
        DocumentKindError,
        "names another module",
    ),
    "06 intermediates of another chain": mutant(under_foreign_bundle, UntrustedChain, "not issued by"),
    "06 bundle of another root": mutant(bundle(lambda _: make_pki().der[:-1]), UntrustedChain, "pinned root"),
    "07 bundle reversed": mutant(bundle(lambda der: der[::-1]), UntrustedChain, "pinned root"),
    "07 bundle below the root reversed": mutant(
        bundle(lambda der: [der[0], *der[:0:-1]]), UntrustedChain, "not issued by"
    ),
    "07 last ca dropped": mutant(bundle(lambda der: der[:-1]), UntrustedChain, "not issued by"),
    "07 bundle empty": mutant(bundle(lambda _: []), FORMAT, "cabundle"),
    "07 entry of 1025 bytes": mutant(
        bundle(lambda der: [*der[:-1], der[-1].ljust(1025, b"\0")]), FORMAT, "certificate"
    ),
    "08 root of the same subject": Mutant(namesake, UntrustedChain, "pinned root"),
    "09 three hours after": judged_after(3 * 3600 + 1),
    "09 three hours before": judged_after(-3 * 3600),
    "10 intermediate in the leaf's place": chain_mutant(as_leaf(), "not a certificate for signing documents"),
    "10 leaf with ca = true": chain_mutant(below_root(leaf=level("leaf", is_ca=True)), "for signing documents"),
    "10 leaf without digitalSignature": chain_mutant(
        below_root(leaf=level("leaf", signs_data=False)), "for signing documents"
    ),
    "11 leaf issues a leaf": chain_mutant([*UNLIMITED, level("leaf"), SECOND_LEAF], "may not issue"),
    "12 path length of the instance": chain_mutant(deeper(0), "path length"),
    "12 path length of the zonal": chain_mutant(below_root(zonal=level("zonal", path_length=0)), "path length"),
    "12 path length of the regional": chain_mutant(
        below_root(regional=level("regional", path_length=1)), "path length"
    ),
}
STRUCTURES: Final = {
    "13 pcrs twice": mutant(with_field("pcrs", REGISTERS), FORMAT, "not valid CBOR"),
    "13 nonce twice": mutant(with_field("nonce", None), FORMAT, "not valid CBOR"),
    "13 nonce twice, once in chunks": mutant(
        lambda pki: sign(
            cbor_map([*fields(pki).items(), (Raw(bytes.fromhex("7f626e6f636e6365ff")), b"x")]), pki.leaf_key
        ),
        FORMAT,
        "not valid CBOR",
    ),
    "13 index 0 twice": mutant(duplicate_in_pcrs(0), FORMAT, "not valid CBOR"),
    "13 index 0 twice, once longer": mutant(duplicate_in_pcrs(Raw(b"\x18\x00")), FORMAT, "not valid CBOR"),
    "13 a key twice in an unknown field": mutant(
        with_field("x", Raw(bytes.fromhex("a201000100"))), FORMAT, "not valid CBOR"
    ),
    "14 index 32": mutant(changed(pcrs=REGISTERS | {32: PCR0}), FORMAT, "pcrs: index"),
    "14 index -1": mutant(changed(pcrs=REGISTERS | {-1: PCR0}), FORMAT, "pcrs: index"),
    "14 index text": mutant(changed(pcrs=REGISTERS | {"16": PCR0}), FORMAT, "pcrs: index"),
    "14 index true": mutant(changed(pcrs={0: PCR0, 2: PCR0, True: PCR0}), FORMAT, "pcrs: index"),
    "14 register of 47 bytes": mutant(changed(pcrs=REGISTERS | {5: PCR0[:47]}), FORMAT, "pcrs: length"),
    "14 register of 0 bytes": mutant(changed(pcrs=REGISTERS | {5: b""}), FORMAT, "pcrs: length"),
    "14 register is text": mutant(changed(pcrs=REGISTERS | {5: "1" * 48}), FORMAT, "pcrs: length"),
    "14 no registers": mutant(changed(pcrs={}), FORMAT, "pcrs"),
    "14 33 registers": mutant(changed(pcrs=dict.fromkeys(range(33), PCR0)), FORMAT, "pcrs"),
    "15 byte after the array": mutant(lambda pki: document(pki) + b"\0", FORMAT, "trailing"),
    "15 byte after the payload's map": mutant(
        lambda pki: sign(cbor2.dumps(fields(pki)) + b"\xf6", pki.leaf_key), FORMAT, "trailing"
    ),
    "16 tag 17": mutant(lambda pki: b"\xd1" + document(pki), FORMAT, "tag"),
    "16 tag 18 twice": mutant(lambda pki: b"\xd2\xd2" + document(pki), FORMAT, "tag"),
    "16 tag 18 below tag 55799": mutant(lambda pki: b"\xd9\xd9\xf7\xd2" + document(pki), FORMAT, "tag"),
    "16 array of 3": mutant(with_array(lambda parts: parts[:3]), FORMAT, "not a COSE_Sign1"),
    "16 array of 5": mutant(with_array(lambda parts: [*parts, b""]), FORMAT, "not a COSE_Sign1"),
    "17 deep arrays": mutant(lambda _: b"\x81" * 12_000, FORMAT, "nested"),
    "17 deep arrays without end": mutant(lambda _: b"\x9f" * 12_000, FORMAT, "nested"),
    "17 deep unknown field": mutant(with_field("x", Raw(b"\x81" * 900 + b"\0")), FORMAT, "nested"),
    "17 array of 2^64 - 1": mutant(lambda _: b"\x9b" + b"\xff" * 8, FORMAT, "exceeds the input"),
    "17 string of 2^64 - 1": mutant(lambda _: b"\x84\x5b" + b"\xff" * 8, FORMAT, "exceeds the input"),
    "17 map of 2^64 - 1 in the payload": mutant(
        lambda pki: sign(b"\xbb" + b"\xff" * 8, pki.leaf_key), FORMAT, "exceeds the input"
    ),
    "17 larger than any document": mutant(changed(user_data=b"x" * 0x3000), FORMAT, "too large"),
}
FIELDS: Final = {
    "18 timestamp 0": mutant(changed(timestamp=0), FORMAT, "timestamp"),
    "18 timestamp text": mutant(changed(timestamp=str(NOW_S * 1000)), FORMAT, "timestamp"),
    "18 timestamp in seconds": mutant(changed(timestamp=NOW_S), FORMAT, "timestamp"),
    "18 timestamp in the future": mutant(
        changed(timestamp=(NOW_S + 61) * 1000), DocumentStale, "future", policy=ARCHIVED
    ),
    "19 digest SHA256": mutant(changed(digest="SHA256"), FORMAT, "digest"),
    "20 module_id empty": mutant(changed(module_id=""), FORMAT, "module_id"),
    "21 debug mode": mutant(
        changed(pcrs=REGISTERS | dict.fromkeys(range(3), ZERO)), DebugDocument, "debug", policy=ARCHIVED
    ),
    "21 debug mode under a policy of zeros": mutant(
        changed(pcrs=REGISTERS | dict.fromkeys(range(3), ZERO)),
        DebugDocument,
        "debug",
        policy=Policy(pcrs=dict.fromkeys(range(3), ZERO), nonce=None, max_age_s=300),
    ),
    "21 debug mode under a policy of PCR3 and PCR4": mutant(
        changed(pcrs=REGISTERS | dict.fromkeys(range(3), ZERO)),
        DebugDocument,
        "debug",
        policy=Policy(pcrs={3: REGISTERS[3], 4: REGISTERS[4]}, nonce=None, max_age_s=300),
    ),
    "22 nitrotpm document": Mutant(nitrotpm, DocumentKindError, "not only an enclave"),
    "22 nitrotpm document with its field renamed": Mutant(
        lambda pki: nitrotpm(pki, pcrs=REGISTERS, nitrotpm_pcrs=ABSENT), DocumentKindError, "module_id"
    ),
    "22 enclave's fields under a nitrotpm leaf": Mutant(
        lambda pki: nitrotpm(pki, module_id=MODULE_ID, pcrs=REGISTERS, nitrotpm_pcrs=ABSENT),
        DocumentKindError,
        "names another module",
    ),
    "22 both kinds of pcrs": mutant(changed(nitrotpm_pcrs=REGISTERS), DocumentKindError, "not only an enclave"),
    "23 wrong nonce": mutant(changed(nonce=b"m" * 32), NonceMismatch, "nonce", policy=ASKED),
    "23 nonce cut short": mutant(changed(nonce=NONCE[:-1]), NonceMismatch, "nonce", policy=ASKED),
    "23 nonce null": mutant(changed(nonce=None), NonceMismatch, "nonce", policy=ASKED),
    "23 nonce absent": mutant(changed(nonce=ABSENT), NonceMismatch, "nonce", policy=ASKED),
    "24 public_key null": mutant(changed(public_key=None), PublicKeyError, "public_key", policy=KEYED),
    "24 public_key absent": mutant(changed(public_key=ABSENT), PublicKeyError, "public_key", policy=KEYED),
    "24 public_key not SPKI": mutant(changed(public_key=b"\x01" * 294), PublicKeyError, "Subject", policy=KEYED),
    "24 public_key on a curve": mutant(
        lambda pki: document(pki, public_key=spki(ec.generate_private_key(ec.SECP384R1()))),
        PublicKeyError,
        "not an RSA key",
        policy=KEYED,
    ),
    "24 public_key of 1024 bits": mutant(
        lambda pki: document(pki, public_key=spki(rsa.generate_private_key(65537, 1024))),  # noqa: S505 - the point
        PublicKeyError,
        "2048",
        policy=KEYED,
    ),
    "25 self-signed, no bundle, in seconds": mutant(lambda pki: self_signed(pki, timestamp=NOW_S), FORMAT, "timestamp"),
    "25 self-signed, no bundle": mutant(self_signed, FORMAT, "cabundle"),
    "25 self-signed, its own bundle": mutant(
        lambda pki: self_signed(pki, cabundle=[make_pki([]).der[0]]), UntrustedChain, "pinned root"
    ),
}
MUTANTS: Final = {**SIGNATURES, **CHAINS, **STRUCTURES, **FIELDS}
