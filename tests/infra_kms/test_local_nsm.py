"""The software NSM: its documents, its measurements, and the renewal of its certificates."""

from __future__ import annotations

import hashlib
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pytest
from cryptography import x509

from enclave.nsm import Nsm, NsmError
from infra.eif.measurement import extend_zero
from infra.local_nsm import LocalNsm, create_pki, measure
from mrgc.attest.chain import aws_root, load_root
from mrgc.attest.verify import Policy, VerifiedDocument, verify_enclave_document
from mrgc.errors import UntrustedChain
from tests.infra_kms.conftest import PCR0, PCRS

START_S: Final = 1_795_000_000.0
HOUR_S: Final = 3600
DAY_S: Final = 24 * HOUR_S
LIVE: Final = Policy(pcrs=PCRS, nonce=b"n" * 32, max_age_s=300)


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now_s = START_S

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    """Return a clock at the time when the root was made."""
    return Clock()


@pytest.fixture
def nsm(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> LocalNsm:
    """Return an NSM whose PKI was made by the same clock."""
    monkeypatch.setattr("time.time", clock)
    create_pki(tmp_path, module_id="i-0123456789abcdef0-enc0123456789abcdef")
    monkeypatch.undo()
    return LocalNsm(tmp_path, PCRS, clock=clock)


def verified(nsm: Nsm, directory: Path, clock: Clock, later_s: float = 0) -> VerifiedDocument:
    """Attest, and verify under the NSM's own root."""
    data = nsm.attest(public_key=b"p", user_data=b"u", nonce=b"n" * 32)
    at = datetime.fromtimestamp(clock.now_s + later_s, UTC)
    root = load_root((directory / "root.pem").read_bytes())
    return verify_enclave_document(data, root=root, at=at, policy=LIVE)


def test_a_document_says_what_was_asked_and_what_runs(nsm: LocalNsm, tmp_path: Path, clock: Clock) -> None:
    """All three fields, all sixteen PCRs, and PCR4 by the genuine rule."""
    document = verified(nsm, tmp_path, clock).document
    assert (document.public_key, document.user_data, document.nonce) == (b"p", b"u", b"n" * 32)
    assert document.module_id == "i-0123456789abcdef0-enc0123456789abcdef"
    assert document.timestamp_ms == START_S * 1000
    assert list(document.pcrs) == list(range(16))
    assert {index: document.pcrs[index] for index in PCRS} == PCRS
    assert document.pcrs[4] == hashlib.sha384(bytes(48) + b"i-0123456789abcdef0").digest()
    assert not any(document.pcrs[8])
    assert len(document.cabundle) == 4


def test_its_documents_fail_under_the_aws_root(nsm: LocalNsm, clock: Clock) -> None:
    """The root is the only thing that keeps a simulated document out of production, and it does."""
    data = nsm.attest(public_key=b"p", user_data=b"u", nonce=b"n" * 32)
    with pytest.raises(UntrustedChain):
        verify_enclave_document(data, root=aws_root(), at=datetime.fromtimestamp(clock.now_s, UTC), policy=LIVE)


@pytest.mark.parametrize("age_s", [0, 2 * HOUR_S, 3 * HOUR_S, DAY_S, 6 * DAY_S, 20 * DAY_S, 365 * DAY_S])
def test_certificates_are_renewed_however_long_it_runs(
    nsm: LocalNsm, tmp_path: Path, clock: Clock, age_s: float
) -> None:
    """At any age a fresh document verifies now, and five minutes later."""
    verified(nsm, tmp_path, clock)
    clock.now_s = START_S + age_s
    verified(nsm, tmp_path, clock)
    verified(nsm, tmp_path, clock, later_s=299)


def test_only_certificates_near_their_end_are_renewed(nsm: LocalNsm, tmp_path: Path, clock: Clock) -> None:
    """The leaf lives three hours and is reused meanwhile; the chain above it stays longer."""
    first = verified(nsm, tmp_path, clock).document
    clock.now_s += 2 * HOUR_S
    reused = verified(nsm, tmp_path, clock).document
    clock.now_s += HOUR_S
    renewed = verified(nsm, tmp_path, clock).document
    assert reused.certificate == first.certificate
    assert renewed.certificate != first.certificate
    assert renewed.cabundle == first.cabundle
    leaf = x509.load_der_x509_certificate(first.certificate)
    assert (leaf.not_valid_after_utc - leaf.not_valid_before_utc).total_seconds() == 3 * HOUR_S + 3


def test_threads_share_one_nsm(nsm: LocalNsm, tmp_path: Path, clock: Clock) -> None:
    """Concurrent requests each get a document that verifies."""
    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(lambda _: verified(nsm, tmp_path, clock), range(16)))) == 16


def test_a_field_over_its_limit_is_refused(nsm: LocalNsm) -> None:
    """1024 bytes are signed, 1025 are not."""
    nsm.attest(public_key=b"x" * 1024, user_data=b"x" * 1024, nonce=b"x" * 1024)
    with pytest.raises(NsmError, match="nonce"):
        nsm.attest(public_key=None, user_data=None, nonce=b"x" * 1025)


@pytest.mark.parametrize("pcrs", [{0: b"short"}, {16: PCR0}, {-1: PCR0}])
def test_registers_that_do_not_exist_are_refused(tmp_path: Path, pcrs: dict[int, bytes]) -> None:
    """A measurement is 48 bytes in one of sixteen registers."""
    create_pki(tmp_path)
    with pytest.raises(ValueError, match="PCR"):
        LocalNsm(tmp_path, pcrs)


def test_a_root_is_never_overwritten(tmp_path: Path) -> None:
    """A second PKI in the same folder would orphan every verifier that holds the first root."""
    create_pki(tmp_path)
    before = (tmp_path / "root.pem").read_bytes()
    with pytest.raises(FileExistsError):
        create_pki(tmp_path)
    assert (tmp_path / "root.pem").read_bytes() == before
    assert (tmp_path / "nsm.json").stat().st_mode & 0o777 == 0o600


def test_random_bytes_have_the_asked_length(nsm: LocalNsm) -> None:
    """The generator is the system's."""
    assert len(nsm.random(256)) == 256
    assert nsm.random(32) != nsm.random(32)


def tree(directory: Path, files: dict[str, bytes]) -> Path:
    """Write files below `directory`."""
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    return directory


def test_the_same_files_measure_the_same_anywhere(tmp_path: Path) -> None:
    """Neither the place, nor the order of the arguments, nor byte-code caches count."""
    first = tree(tmp_path / "1" / "app", {"a.py": b"a", "sub/b.py": b"b"})
    second = tree(tmp_path / "2" / "app", {"sub/b.py": b"b", "a.py": b"a", "__pycache__/a.pyc": b"junk"})
    other = tree(tmp_path / "3" / "lib", {"c.py": b"c"})
    assert measure([first]) == measure([second])
    assert measure([first, other]) == measure([other, second])
    assert measure([first / "a.py"]) != measure([first])


@pytest.mark.parametrize(
    "files",
    [
        {"a.py": b"x", "sub/b.py": b"b"},
        {"a.py": b"a", "sub/c.py": b"b"},
        {"a.py": b"a"},
        {"a.py": b"a", "sub/b.py": b"b", "d.py": b""},
        {"a.py": b"asub/b.py", "sub/b.py": b""},
    ],
)
def test_any_change_of_a_file_or_name_changes_the_measurement(tmp_path: Path, files: dict[str, bytes]) -> None:
    """PCR0 and PCR2 follow the application; PCR1 is the interpreter's."""
    before = measure([tree(tmp_path / "1" / "app", {"a.py": b"a", "sub/b.py": b"b"})])
    after = measure([tree(tmp_path / "2" / "app", files)])
    assert (before[0] != after[0], before[1] == after[1], before[2] != after[2]) == (True, True, True)


def test_the_rule_is_that_of_enclave_images(tmp_path: Path) -> None:
    """PCR = SHA-384(48 zero bytes ‖ SHA-384(content)); the interpreter stands for what boots."""
    interpreter = Path(sys.executable).resolve().read_bytes()
    assert measure([tree(tmp_path, {"a": b"a"})])[1] == extend_zero(hashlib.sha384(interpreter).digest())
