from __future__ import annotations

import datetime as dt
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from asn1crypto import cms as oracle
from cryptography import x509
from cryptography.hazmat.primitives import hashes, padding
from cryptography.hazmat.primitives.asymmetric import padding as rsa_padding
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from enclave.cms import MAX_CMS_BYTES, open_enveloped, parse_enveloped
from mrgc.errors import AuthenticationError

VECTORS = Path(__file__).parents[1] / "vectors" / "kms-cms"
KEY = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
SECRET = bytes(range(32))

OID_DATA = bytes.fromhex("06092a864886f70d010701")
OID_ENVELOPED = bytes.fromhex("06092a864886f70d010703")
SHA256 = bytes.fromhex("300d06096086480165030402010500")
SHA256_BARE = bytes.fromhex("300b0609608648016503040201")
SHA1 = bytes.fromhex("300906052b0e03021a0500")
OID_MGF1 = bytes.fromhex("06092a864886f70d010108")
OID_OAEP = bytes.fromhex("06092a864886f70d010107")
OID_AES256 = bytes.fromhex("060960864801650304012a")
OID_AES128 = bytes.fromhex("0609608648016503040102")


def tlv(tag: int, *parts: bytes) -> bytes:
    """Encode one element with a definite length."""
    value = b"".join(parts)
    if len(value) < 0x80:
        return bytes([tag, len(value)]) + value
    size = len(value).to_bytes(2, "big")
    return bytes([tag, 0x82]) + size + value


def indefinite(tag: int, *parts: bytes) -> bytes:
    """Encode one constructed element with an indefinite length."""
    return bytes([tag, 0x80]) + b"".join(parts) + b"\x00\x00"


def segments(tag: int, ciphertext: bytes, wrap: Callable[..., bytes]) -> bytes:
    """Encode content as two OCTET STRING segments."""
    return wrap(tag, tlv(0x04, ciphertext[:7]), tlv(0x04, ciphertext[7:]))


SHAPES: dict[str, Callable[[bytes], bytes]] = {
    "primitive": lambda c: tlv(0x80, c),
    "constructed definite": lambda c: segments(0xA0, c, tlv),
    "constructed indefinite": lambda c: segments(0xA0, c, indefinite),
}


def envelope(plaintext: bytes = SECRET, *, key: rsa.RSAPrivateKey = KEY, **changes: Any) -> bytes:
    """Build a CiphertextForRecipient; `changes` replace parts of it."""
    content_key, iv = changes.get("content_key", os.urandom(32)), os.urandom(16)
    oaep = rsa_padding.OAEP(mgf=rsa_padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None)
    pad = padding.PKCS7(128).padder()
    padded = changes.get("padded", pad.update(plaintext) + pad.finalize())
    encryptor = Cipher(algorithms.AES(content_key), modes.CBC(iv)).encryptor()
    ciphertext = encryptor.update(padded) + encryptor.finalize()
    mask = tlv(0x30, OID_MGF1, changes.get("mgf_hash", SHA256))
    parameters = tlv(0x30, tlv(0xA0, changes.get("oaep_hash", SHA256)), tlv(0xA1, mask))
    recipient = tlv(
        0x30,
        tlv(0x02, changes.get("recipient_version", b"\x02")),
        changes.get("identifier", tlv(0x80, bytes(32))),
        tlv(0x30, changes.get("algorithm", OID_OAEP), parameters),
        tlv(0x04, key.public_key().encrypt(content_key, oaep)),
    )
    recipients = tlv(0x31, *[recipient] * changes.get("recipients", 1))
    cipher = tlv(0x30, changes.get("cipher", OID_AES256), tlv(0x04, changes.get("iv", iv)))
    content = changes.get("shape", SHAPES["primitive"])(changes.get("ciphertext", ciphertext))
    encrypted = tlv(0x30, changes.get("content_type", OID_DATA), cipher, content)
    version = tlv(0x02, changes.get("version", b"\x02"))
    enveloped = changes.get("wrap", tlv)(0x30, version, recipients, encrypted, *changes.get("extra", []))
    return tlv(0x30, changes.get("outer_type", OID_ENVELOPED), tlv(0xA0, enveloped))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a certificate of KEY, as the openssl command line wants its recipient."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "recipient")])
    start = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(KEY.public_key())
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(start + dt.timedelta(days=36_500))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(KEY.public_key()), critical=False)
        .sign(KEY, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("cms") / "recipient.pem"
    path.write_bytes(built.public_bytes(Encoding.PEM))
    return path


@pytest.mark.parametrize("vector", json.loads((VECTORS / "expected.json").read_text()), ids=lambda v: v["file"])
def test_answers_of_aws_parse_field_for_field(vector: dict[str, str]) -> None:
    """Both published answers of AWS KMS have the expected wrapped key, IV and ciphertext; asn1crypto agrees."""
    data = (VECTORS / vector["file"]).read_bytes()
    found = parse_enveloped(data)
    assert found.encrypted_key.hex() == vector["encrypted_key_hex"]
    assert found.iv.hex() == vector["iv_hex"]
    assert found.ciphertext.hex() == vector["ciphertext_hex"]
    content = oracle.ContentInfo.load(data)["content"]
    info = content["encrypted_content_info"]
    assert content["recipient_infos"][0].chosen["encrypted_key"].native == found.encrypted_key
    assert info["content_encryption_algorithm"]["parameters"].native == found.iv
    assert info["encrypted_content"].native == found.ciphertext


@pytest.mark.parametrize("stream", [[], ["-stream"]], ids=["der", "ber"])
@pytest.mark.parametrize("plaintext", [SECRET, b"x", b"y" * 4_096], ids=len)
def test_what_openssl_encrypts_opens(certificate: Path, stream: list[str], plaintext: bytes) -> None:
    """The openssl command line's CMS, in DER and in streamed BER, opens to what went in."""
    options = ["-encrypt", "-binary", "-aes-256-cbc", "-keyid", "-outform", "DER", *stream]
    oaep = ["-keyopt", "rsa_padding_mode:oaep", "-keyopt", "rsa_oaep_md:sha256"]
    command = ["openssl", "cms", *options, "-recip", str(certificate), *oaep]
    sealed = subprocess.run(command, input=plaintext, capture_output=True, check=True).stdout
    assert bytes(open_enveloped(sealed, private_key=KEY)) == plaintext


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("wrap", [tlv, indefinite])
def test_all_three_shapes_of_content_open(shape: str, wrap: Callable[..., bytes]) -> None:
    """Primitive, constructed definite and constructed indefinite content all open; asn1crypto reads the same."""
    sealed = envelope(shape=SHAPES[shape], wrap=wrap)
    assert open_enveloped(sealed, private_key=KEY) == SECRET
    if shape == "constructed definite":
        return  # Legal BER that asn1crypto does not read.
    info = oracle.ContentInfo.load(sealed)["content"]["encrypted_content_info"]
    assert info["encrypted_content"].native == parse_enveloped(sealed).ciphertext


def test_absent_hash_parameters_are_accepted() -> None:
    """RFC 4055 lets the parameters of SHA-256 be absent instead of NULL."""
    assert open_enveloped(envelope(oaep_hash=SHA256_BARE, mgf_hash=SHA256_BARE), private_key=KEY) == SECRET


@pytest.mark.parametrize(
    "changes",
    [
        {"version": b"\x00"},
        {"recipient_version": b"\x00"},
        {"recipients": 0},
        {"recipients": 2},
        {"identifier": tlv(0x30, tlv(0x30), tlv(0x02, b"\x01"))},
        {"identifier": tlv(0x80)},
        {"algorithm": bytes.fromhex("06092a864886f70d010101")},
        {"oaep_hash": SHA1},
        {"mgf_hash": SHA1},
        {"oaep_hash": SHA256 + SHA256},
        {"cipher": OID_AES128},
        {"iv": bytes(15)},
        {"ciphertext": b""},
        {"ciphertext": bytes(31)},
        {"content_type": OID_ENVELOPED},
        {"outer_type": OID_DATA},
        {"extra": [tlv(0xA1)]},
        {"shape": lambda c: tlv(0xA0, tlv(0x24, tlv(0x04, c)))},
        {"shape": lambda c: tlv(0x04, c)},
        {"shape": lambda c: bytes([0x80, 0x80]) + c + b"\x00\x00"},
        {"content_key": bytes(16)},
        {"padded": bytes(32)},
        {"padded": bytes(15) + b"\x11" + bytes(15) + b"\x11"},
        {"padded": bytes(14) + b"\x01\x02"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_every_other_shape_is_refused_alike(changes: dict[str, Any]) -> None:
    """Another version, recipient, algorithm, shape or padding is refused with the one error of authentication."""
    with pytest.raises(AuthenticationError, match=r"^authentication failed$"):
        open_enveloped(envelope(**changes), private_key=KEY)


def test_an_answer_to_another_key_is_refused() -> None:
    """What was encrypted to another RSA key does not open."""
    other = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
    with pytest.raises(AuthenticationError):
        open_enveloped(envelope(key=other), private_key=KEY)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x30",
        b"\x30\x80",
        b"\x30\x80\x00",
        b"\x30\x84\xff\xff\xff\xff",
        b"\x30\x85\x00\x00\x00\x00\x01\x00",
        b"\x1f\x01\x00",
        b"\x30\x80" * 4_000,
        b"\x30\x82\x0f\xfc" + b"\x04\x00" * 2_046,
        envelope() + b"\x00",
        envelope()[:-1],
        envelope() + bytes(MAX_CMS_BYTES),
    ],
    ids=lambda data: f"{len(data)} bytes",
)
def test_malformed_ber_ends_in_bounds(data: bytes) -> None:
    """Truncated, nested, endless and oversize encodings are refused without deep recursion or large allocation."""
    with pytest.raises(AuthenticationError):
        parse_enveloped(data)


@given(st.data())
def test_no_mutation_raises_anything_else(data: st.DataObject) -> None:
    """Whatever bytes are changed, dropped or doubled, the reader answers, or refuses in the one way."""
    original = (VECTORS / "kms-envelopeddata-indefinite.ber").read_bytes()
    start = data.draw(st.integers(0, len(original)))
    end = data.draw(st.integers(start, min(len(original), start + 8)))
    mutant = original[:start] + data.draw(st.binary(max_size=8)) + original[end:]
    try:
        found = parse_enveloped(mutant)
    except AuthenticationError:
        return
    assert len(found.iv) == 16
    assert len(found.ciphertext) % 16 == 0
