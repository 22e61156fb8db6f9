"""CiphertextForRecipient: the shape of AWS's, opened by other people's code."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from infra.cms_encrypt import Envelope, encrypt, write
from tests.infra_kms.cms_oracle import enveloped, open_cms

VECTORS: Final = Path(__file__).parents[1] / "vectors" / "kms-cms"
KEY: Final = rsa.generate_private_key(65537, 2048)


def test_a_published_answer_of_aws_is_reproduced_to_the_byte() -> None:
    """Given the same four values, the writer makes the very bytes that AWS KMS sent."""
    facts = next(each for each in json.loads((VECTORS / "expected.json").read_text()) if "indefinite" in each["file"])
    data = (VECTORS / facts["file"]).read_bytes()
    identifier = enveloped(data)["recipient_infos"][0].chosen["rid"].chosen.native
    values = (bytes.fromhex(facts[name]) for name in ("encrypted_key_hex", "iv_hex", "ciphertext_hex"))
    assert write(Envelope(identifier, *values)) == data


@given(st.binary(max_size=4096))
def test_any_plaintext_opens_with_other_peoples_code(plaintext: bytes) -> None:
    """asn1crypto and cryptography read what the writer wrote, whatever the length."""
    assert open_cms(encrypt(plaintext, KEY.public_key()), KEY) == plaintext


def test_the_structure_is_version_2_by_key_identifier_with_oaep_sha256() -> None:
    """Every field that the enclave's reader will check is as AWS sends it."""
    content = enveloped(encrypt(b"k" * 32, KEY.public_key()))
    recipient = content["recipient_infos"][0].chosen
    oaep = recipient["key_encryption_algorithm"]
    assert (content["version"].native, recipient["version"].native) == ("v2", "v2")
    assert recipient["rid"].name == "subject_key_identifier"
    assert oaep["algorithm"].native == "rsaes_oaep"
    assert oaep["parameters"]["hash_algorithm"]["algorithm"].native == "sha256"
    assert oaep["parameters"]["mask_gen_algorithm"]["parameters"]["algorithm"].native == "sha256"
    cipher = content["encrypted_content_info"]["content_encryption_algorithm"]["algorithm"].native
    assert cipher == "aes256_cbc"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="the openssl CLI is not installed")
def test_the_openssl_cli_opens_it(tmp_path: Path) -> None:
    """A third implementation agrees."""
    (tmp_path / "answer").write_bytes(encrypt(b"k" * 32, KEY.public_key()))
    (tmp_path / "key").write_bytes(KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    command = ["openssl", "cms", "-decrypt", "-inform", "DER", "-in", "answer", "-inkey", "key"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    assert done.stdout == b"k" * 32
