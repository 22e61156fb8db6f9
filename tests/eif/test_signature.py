"""Signed images: PCR8, who signed, and what a signature must cover."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from infra.eif import reader, signature, writer
from infra.eif.signature import Signer
from infra.eif.writer import Contents
from mrgc.errors import ConfigError, FormatError
from tests.eif.conftest import make_signer

PCR0 = bytes(range(48))


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_a_signed_image_names_its_signer(curve: ec.EllipticCurve, contents: Contents, tmp_path: Path) -> None:
    """On every curve that nitro-cli takes, the signature verifies and PCR8 is the certificate's."""
    signer = make_signer(curve)
    file = tmp_path / "signed.eif"
    writer.write(file, replace(contents, signer=signer))
    image = reader.read(file)
    assert image.signer == signer.certificate
    der = signer.certificate.public_bytes(Encoding.DER)
    assert image.pcrs[8] == hashlib.sha384(bytes(48) + hashlib.sha384(der).digest()).digest()


def test_signing_changes_no_other_register(contents: Contents, signer: Signer, tmp_path: Path) -> None:
    """PCR0, PCR1 and PCR2 of a signed image are those of the unsigned one."""
    for name, image in {"plain": contents, "signed": replace(contents, signer=signer)}.items():
        writer.write(tmp_path / name, image)
    plain, signed = (reader.read(tmp_path / name).pcrs for name in ("plain", "signed"))
    assert plain == {index: signed[index] for index in (0, 1, 2)}


def test_signing_twice_gives_the_same_bytes(contents: Contents, signer: Signer) -> None:
    """A signed image is as reproducible as an unsigned one."""
    signed = replace(contents, signer=signer)
    assert writer.encode(signed) == writer.encode(signed)


def test_a_signature_of_another_image_is_refused(signer: Signer) -> None:
    """A signature taken over from an older image does not vouch for this one."""
    section = signature.sign(PCR0, signer)
    assert signature.verify(section, PCR0) == signer.certificate
    with pytest.raises(FormatError, match="not this image"):
        signature.verify(section, bytes(48))


def test_a_key_signs_under_its_own_certificate_only(signer: Signer) -> None:
    """A wrong certificate beside the key is noticed at build time."""
    with pytest.raises(ConfigError, match="not that of the signing key"):
        signature.sign(PCR0, signer._replace(certificate=make_signer(ec.SECP384R1()).certificate))


def test_a_curve_that_nitro_does_not_take_is_refused() -> None:
    """Only the three curves of ES256, ES384 and ES512 sign images."""
    with pytest.raises(ConfigError, match="secp256k1"):
        signature.sign(PCR0, make_signer(ec.SECP256K1()))


def altered(section: bytes, change: Callable[[list[Any]], None]) -> bytes:
    """Return the section with its COSE_Sign1 changed."""
    outer = cbor2.loads(section)
    sign1 = cbor2.loads(bytes(outer[0]["signature"]))
    change(sign1)
    outer[0]["signature"] = list(cbor2.dumps(sign1))
    return cbor2.dumps(outer)


@pytest.mark.parametrize(
    "change",
    [
        lambda sign1: sign1.__setitem__(3, bytes([sign1[3][0] ^ 1]) + sign1[3][1:]),
        lambda sign1: sign1.__setitem__(3, bytes(96)),
        lambda sign1: sign1.__setitem__(3, sign1[3][:-1]),
        lambda sign1: sign1.__setitem__(0, cbor2.dumps({1: -7})),
        lambda sign1: sign1.__setitem__(0, b""),
        lambda sign1: sign1.__setitem__(2, cbor2.dumps({"register_index": 0, "register_value": list(PCR0[::-1])})),
        lambda sign1: sign1.pop(),
    ],
)
def test_a_changed_signature_is_refused(change: Callable[[list[Any]], None], signer: Signer) -> None:
    """Neither value, length, algorithm nor payload of the signature can change."""
    with pytest.raises(FormatError, match=r"^signature: "):
        signature.verify(altered(signature.sign(PCR0, signer), change), PCR0)


@pytest.mark.parametrize("payload", [{"register_index": 1, "register_value": list(PCR0)}, {"register_value": 48}])
def test_a_signature_over_something_else_is_refused(payload: dict[str, Any], signer: Signer) -> None:
    """A genuine signature over another register, or over no register at all, is none."""
    protected, body = cbor2.dumps({1: -35}), cbor2.dumps(payload)
    whole = cbor2.loads(signature.sign(PCR0, signer))
    key = signer.key.sign(signature._to_sign(protected, body), ec.ECDSA(signature._CURVES[-35][1]()))
    r, s = decode_dss_signature(key)
    raw = r.to_bytes(48, "big") + s.to_bytes(48, "big")
    whole[0]["signature"] = list(cbor2.dumps([protected, {}, body, raw]))
    with pytest.raises(FormatError, match=r"^signature: "):
        signature.verify(cbor2.dumps(whole), PCR0)


@pytest.mark.parametrize(
    "outer",
    [
        [],
        {},
        [{}],
        [{"signing_certificate": 1 << 40, "signature": [1]}],
        [{"signing_certificate": [300], "signature": [1]}],
        [{"signing_certificate": [1], "signature": [1]}],
        [{"signing_certificate": b"pem", "signature": b"cose"}],
    ],
)
def test_a_section_of_another_form_is_refused(outer: Any) -> None:
    """A section that is not what nitro-cli writes is refused, and nothing is allocated for a number it names."""
    with pytest.raises(FormatError, match="not of the form"):
        signature.verify(cbor2.dumps(outer), PCR0)
