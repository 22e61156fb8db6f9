"""Sealed objects against the vectors, and properties of seal and open."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from mrgc.errors import AuthenticationError, FormatError, MrgcError, TooLargeError
from mrgc.wire import sealed, strict_cbor
from mrgc.wire.headers import JobHeader, ResultHeader, StandaloneHeader
from tests.vectors.sealed import make

VECTORS: list[dict[str, Any]] = json.loads((Path(make.__file__).with_name("vectors.json")).read_text())
DATA_KEY = make.DATA_KEY


def open_vector(vector: dict[str, Any]) -> JobHeader | ResultHeader | StandaloneHeader:
    """Run a vector through every check of its kind, in the order of docs/spec.md §2."""
    data, data_key = bytes.fromhex(vector["object"]), bytes.fromhex(vector["data_key"])
    if vector["kind"] == "job":
        job = sealed.parse_job(data)
        sealed.ensure_in_time(job.header, vector["now"])
        sealed.open_job(job, data_key=data_key)
        return job.header
    if vector["kind"] == "standalone":
        standalone = sealed.parse_standalone(data)
        sealed.open_standalone(standalone, data_key=data_key)
        return standalone.header
    result = sealed.parse_result(data)
    sealed.open_result(result, data_key=data_key)
    return result.header


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_each_vector_is_accepted_or_refused_with_the_code_it_names(vector: dict[str, Any]) -> None:
    """Each vector ends as it says, and an accepted header re-encodes to the received bytes."""
    if vector["expect"] != "ok":
        with pytest.raises(MrgcError) as refusal:
            open_vector(vector)
        assert refusal.value.code == vector["expect"]
        return
    encoded = strict_cbor.encode(open_vector(vector).to_map())
    data = bytes.fromhex(vector["object"])
    assert data[12 : 12 + len(encoded)] == encoded
    assert int.from_bytes(data[6:8], "big") == len(encoded)


def test_the_vector_file_is_what_its_generator_writes() -> None:
    """The committed vectors equal a fresh run of their independent generator."""
    assert make.vectors() == VECTORS


def test_the_first_vector_has_the_values_that_the_specification_prints() -> None:
    """Lengths, hashes and derived keys of docs/spec.md §10."""
    data = bytes.fromhex(VECTORS[0]["object"])
    job = sealed.parse_job(data)
    assert (len(data), data[:12].hex()) == (379, "6d7267630101014f00000010")
    assert job.request.hex() == "4758744040431784946b19462aa052ff52695c0b1acdde95974f752286b8f9bc"
    assert job.header.commit.hex() == "d260ac4bb8c17115aba8120043ef0fc65f0a1815afadfb0904aef511f69f61d3"
    job_key, _ = sealed.derive(DATA_KEY, make.SALT, sealed.job_info(job.header.job))
    assert job_key.hex() == "e0d5fd8d5173dbd04bd36737c925442961fa7c1169dab52a21a0e951c177ed46"
    result_key, commit = sealed.derive(DATA_KEY, make.SALT, sealed.result_info(job.header.job, job.request))
    assert result_key.hex() == "c80521821ec183e00eaa4c05a1437b2ea0ee8c7459e2da0974e09158bf20e201"
    assert commit.hex() == "f1132c4e53ff8b3894f7619f85e14fc5cfe398993fece02dd19cb2e404b8eb03"
    assert bytes(sealed.open_job(job, data_key=DATA_KEY)) == b'{"inputs":["x"]}'


def draft() -> sealed.JobDraft:
    """Draft of the first vector."""
    return sealed.JobDraft(**make.job_fields())


def result_draft(request: bytes) -> sealed.ResultDraft:
    """Draft of a plain result for `request`."""
    return sealed.ResultDraft(**make.result_fields(request))


@given(plaintext=st.binary(min_size=1, max_size=2_000), data_key=st.binary(min_size=32, max_size=32))
def test_opening_undoes_sealing(plaintext: bytes, data_key: bytes) -> None:
    """A job and its result open to what was sealed, under the same data key."""
    job = sealed.parse_job(sealed.seal_job(draft(), plaintext, data_key=data_key))
    assert sealed.open_job(job, data_key=data_key) == plaintext
    result = sealed.parse_result(sealed.seal_result(result_draft(job.request), plaintext, data_key=data_key))
    assert sealed.open_result(result, data_key=data_key) == plaintext


def standalone_draft() -> sealed.StandaloneDraft:
    """Draft of a plain standalone object."""
    return sealed.StandaloneDraft("acme", make.ARN, b"wrapped", "req-abc-123", make.NOW)


@given(body=st.binary(min_size=1, max_size=2_000), data_key=st.binary(min_size=32, max_size=32))
def test_opening_undoes_sealing_of_a_standalone_object(body: bytes, data_key: bytes) -> None:
    """A standalone object opens to what was sealed, and its context follows from its tenant."""
    made = sealed.parse_standalone(sealed.seal_standalone(standalone_draft(), body, data_key=data_key))
    assert sealed.open_standalone(made, data_key=data_key) == body
    assert made.header.context == {"mrgc:tenant": "acme", "mrgc:use": "standalone"}
    assert made.header.request_id == "req-abc-123"


def test_the_three_kinds_never_share_an_aead_key() -> None:
    """The same data key and salt give a job, a result and a standalone object keys of their own."""
    infos = (sealed.job_info(make.JOB), sealed.result_info(make.JOB, bytes(32)), b"mrgc/1/standalone\x00")
    assert len({part for info in infos for part in sealed.derive(DATA_KEY, make.SALT, info)}) == 6


def test_sealing_a_standalone_object_refuses_what_parsing_would_refuse() -> None:
    """A request id or tenant that no reader would take is not sealed."""
    for change in ({"request_id": ""}, {"tenant": "Acme"}, {"edk": b""}, {"created": -1}):
        with pytest.raises(FormatError):
            sealed.seal_standalone(standalone_draft()._replace(**change), b"x", data_key=DATA_KEY)


@given(data=st.data())
def test_no_flipped_bit_survives(data: st.DataObject) -> None:
    """Statement 2: whichever bit of a sealed job flips, parsing or opening refuses it."""
    original = bytes.fromhex(VECTORS[0]["object"])
    bit = data.draw(st.integers(0, 8 * len(original) - 1))
    mutant = bytearray(original)
    mutant[bit // 8] ^= 1 << bit % 8
    with pytest.raises((FormatError, AuthenticationError)):
        sealed.open_job(sealed.parse_job(mutant), data_key=DATA_KEY)


def test_what_a_tag_refuses_is_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flipped bit leaves no plaintext behind, though AES-GCM has decrypted the rest before it compares the tag."""
    filled: list[bytearray] = []

    class Watched:
        def __init__(self, key: bytes) -> None:
            self._real = AESGCM(key)

        def decrypt_into(self, nonce: bytes, data: memoryview, aad: bytes, buffer: bytearray) -> None:
            try:
                self._real.decrypt_into(nonce, data, aad, buffer)
            finally:
                filled.append(buffer)
                seen.append(bytes(buffer))

    seen: list[bytes] = []
    data = bytearray.fromhex(VECTORS[0]["object"])
    data[-1] ^= 1
    monkeypatch.setattr(sealed, "AESGCM", Watched)
    with pytest.raises(AuthenticationError):
        sealed.open_job(sealed.parse_job(data), data_key=DATA_KEY)
    assert seen == [b'{"inputs":["x"]}']
    assert filled == [bytearray(16)]


@given(noise=st.binary(max_size=300))
def test_noise_raises_nothing_but_format_errors(noise: bytes) -> None:
    """Arbitrary bytes, with and without a plausible prefix, are refused as bad_format."""
    for candidate in (noise, VECTORS[0]["object"][:24].encode(), bytes.fromhex(VECTORS[0]["object"])[:12] + noise):
        with pytest.raises(FormatError):
            sealed.parse_job(candidate)


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_a_data_key_of_another_length_authenticates_nothing(length: int) -> None:
    """The data key is exactly 32 bytes; any other length is the one authentication failure."""
    job = sealed.parse_job(bytes.fromhex(VECTORS[0]["object"]))
    with pytest.raises(AuthenticationError, match=r"^authentication failed$"):
        sealed.open_job(job, data_key=bytes(length))
    with pytest.raises(AuthenticationError):
        sealed.seal_job(draft(), b"x", data_key=bytes(length))


def test_two_sealings_of_the_same_payload_share_no_salt() -> None:
    """Each sealing draws its own salt, so no AEAD key ever meets a second plaintext."""
    jobs = [sealed.parse_job(sealed.seal_job(draft(), b"x", data_key=DATA_KEY)) for _ in range(2)]
    assert jobs[0].header.salt != jobs[1].header.salt
    assert bytes(jobs[0].ciphertext) != bytes(jobs[1].ciphertext)


def test_a_body_over_the_deployments_cap_is_too_large_not_malformed() -> None:
    """A legal body over the deployment's own cap is named too_large before it is decrypted."""
    data = sealed.seal_job(draft(), bytes(1_001), data_key=DATA_KEY)
    assert sealed.parse_job(data, max_body_bytes=1_001).body_bytes == 1_001
    with pytest.raises(TooLargeError):
        sealed.parse_job(data, max_body_bytes=1_000)


def test_the_aad_alone_gives_the_header_back() -> None:
    """seal_batch sees only the AAD; a cut or padded one is refused."""
    job = sealed.parse_job(bytes.fromhex(VECTORS[1]["object"]))
    assert sealed.parse_job_aad(job.aad) == job.header
    for broken in (job.aad[:-1], job.aad + b"\x00", job.aad[:5], b""):
        with pytest.raises(FormatError):
            sealed.parse_job_aad(broken)


def test_sealing_refuses_what_parsing_would_refuse() -> None:
    """A writer cannot make an object that a reader must refuse."""
    for change in ({"floor": 9}, {"items": 0}, {"tenant": "other"}, {"result": "http://x/"}):
        with pytest.raises(FormatError):
            sealed.seal_job(draft()._replace(**change), b"x", data_key=DATA_KEY)
    with pytest.raises(FormatError):
        sealed.seal_job(draft(), b"", data_key=DATA_KEY)
