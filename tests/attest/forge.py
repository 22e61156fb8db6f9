"""Documents under a root of our own in which exactly one thing is wrong: everything else is signed anew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

import cbor2
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from infra.nsm_chain import ROOT, Issuer, Level, issue, levels
from mrgc.attest.chain import Root
from mrgc.attest.verify import Policy, VerifiedDocument, verify_enclave_document

NOW_S: Final = 1_795_000_000
NOW: Final = datetime.fromtimestamp(NOW_S, UTC)
MODULE_ID: Final = "i-0123456789abcdef0-enc0123456789abcdef"
REGION: Final = "us-east-1"
ES384: Final = bytes.fromhex("a1013822")
PCR0: Final = b"\x11" * 48
#: The PCRs of a good document.
REGISTERS: Final = {0: PCR0, **{index: bytes([index + 1]) * 48 for index in range(1, 16)}}
P384_ORDER: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973
LIVE: Final = Policy(pcrs={0: PCR0}, nonce=None, max_age_s=300)
#: Value that removes a field.
ABSENT: Final = object()


@dataclass(frozen=True)
class Pki:
    """A chain, root first and leaf last, with the key of each certificate."""

    chain: tuple[Issuer, ...]

    @property
    def root(self) -> Root:
        return Root(self.der[0])

    @property
    def der(self) -> list[bytes]:
        return [each.certificate.public_bytes(Encoding.DER) for each in self.chain]

    @property
    def leaf_key(self) -> ec.EllipticCurvePrivateKey:
        return self.chain[-1].key

    def replaced(self, index: int, certificate: x509.Certificate) -> Pki:
        """Return the chain with another certificate for the same key."""
        chain = list(self.chain)
        chain[index] = replace(chain[index], certificate=certificate)
        return Pki(tuple(chain))


def below_root(**changes: Level) -> list[Level]:
    """Return the levels below the root, some of them replaced by name."""
    names = ("regional", "zonal", "instance", "leaf")
    return [changes.get(name, level) for name, level in zip(names, levels(MODULE_ID, REGION), strict=True)]


def level(name: str, **changes: Any) -> Level:
    """Return one genuine level with changed attributes."""
    found = dict(zip(("regional", "zonal", "instance", "leaf"), levels(MODULE_ID, REGION), strict=True))
    return replace(found[name], **changes)


def make_pki(below: Sequence[Level] | None = None, *, issued_s: float = NOW_S) -> Pki:
    """Issue a chain of the given levels, all at one time."""
    key = ec.generate_private_key(ec.SECP384R1())
    chain = [Issuer(issue(ROOT, key.public_key(), issuer=None, signer=key, now_s=issued_s), key)]
    for each in below_root() if below is None else below:
        key = ec.generate_private_key(ec.SECP384R1())
        above = chain[-1]
        certificate = issue(each, key.public_key(), issuer=above.certificate, signer=above.key, now_s=issued_s)
        chain.append(Issuer(certificate, key))
    return Pki(tuple(chain))


def builder_of(certificate: x509.Certificate, *, without: type[x509.ExtensionType] | None = None) -> Any:
    """Return a builder with everything of `certificate`, less one kind of extension, to be changed and signed."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(certificate.subject)
        .issuer_name(certificate.issuer)
        .public_key(certificate.public_key())
        .serial_number(certificate.serial_number)
        .not_valid_before(certificate.not_valid_before_utc)
        .not_valid_after(certificate.not_valid_after_utc)
    )
    for each in certificate.extensions:
        if without is None or not isinstance(each.value, without):
            builder = builder.add_extension(each.value, each.critical)
    return builder


def fields(pki: Pki, **changes: Any) -> dict[str, Any]:
    """Return the payload's map, in the order of genuine documents, with changes."""
    base = {
        "module_id": MODULE_ID,
        "digest": "SHA384",
        "timestamp": NOW_S * 1000,
        "pcrs": REGISTERS,
        "certificate": pki.der[-1],
        "cabundle": pki.der[:-1],
        "public_key": None,
        "user_data": None,
        "nonce": None,
    }
    return {name: value for name, value in (base | changes).items() if value is not ABSENT}


def signature(payload: bytes, key: ec.EllipticCurvePrivateKey, *, protected: bytes = ES384) -> bytes:
    """Return r ‖ s over the Sig_structure."""
    to_sign = cbor2.dumps(["Signature1", protected, b"", payload])
    r, s = decode_dss_signature(key.sign(to_sign, ec.ECDSA(hashes.SHA384())))
    return r.to_bytes(48, "big") + s.to_bytes(48, "big")


def sign(
    payload: bytes, key: ec.EllipticCurvePrivateKey, *, protected: bytes = ES384, unprotected: Any = None
) -> bytes:
    """Return an untagged COSE_Sign1 over `payload`."""
    header = {} if unprotected is None else unprotected
    return cbor2.dumps([protected, header, payload, signature(payload, key, protected=protected)])


def document(pki: Pki, **changes: Any) -> bytes:
    """Return a signed document, good but for `changes`."""
    return sign(cbor2.dumps(fields(pki, **changes)), pki.leaf_key)


def accept(data: bytes, pki: Pki, *, policy: Policy = LIVE, at: datetime = NOW) -> VerifiedDocument:
    """Verify as an enclave document under the forged root."""
    return verify_enclave_document(data, root=pki.root, at=at, policy=policy)


def cbor_map(pairs: Sequence[tuple[Any, Any]]) -> bytes:
    """Encode a map as written, duplicate keys and all; what is `Raw` goes in verbatim."""
    body = b"".join(_encoded(key) + _encoded(value) for key, value in pairs)
    return bytes([0xB8, len(pairs)]) + body


def _encoded(value: Any) -> bytes:
    return value.data if isinstance(value, Raw) else cbor2.dumps(value)


@dataclass(frozen=True)
class Raw:
    """CBOR that is already encoded."""

    data: bytes


Make = Callable[[Pki], bytes]


def changed(**changes: Any) -> Make:
    """Change fields of a good document, and sign it anew."""
    return lambda pki: document(pki, **changes)


def with_signature(change: Callable[[bytes], bytes]) -> Make:
    """Change the signature of a good document."""
    return with_array(lambda parts: [*parts[:3], change(parts[3])])


def with_array(change: Callable[[list[Any]], Any]) -> Make:
    """Change the four parts of a good document."""
    return lambda pki: cbor2.dumps(change(cbor2.loads(document(pki))))


def with_header(protected: bytes, unprotected: Any = None) -> Make:
    """Sign a good payload under another header."""
    return lambda pki: sign(cbor2.dumps(fields(pki)), pki.leaf_key, protected=protected, unprotected=unprotected)


def with_field(name: str, value: Any) -> Make:
    """Append a field, whether or not its name is already there, and sign."""
    return lambda pki: sign(cbor_map([*fields(pki).items(), (name, value)]), pki.leaf_key)


def with_pcr_pairs(pairs: list[tuple[Any, Any]]) -> Make:
    """Write the PCRs as pairs, duplicates and all, and sign."""

    def make(pki: Pki) -> bytes:
        changed = [(name, Raw(cbor_map(pairs)) if name == "pcrs" else value) for name, value in fields(pki).items()]
        return sign(cbor_map(changed), pki.leaf_key)

    return make
