"""`mrgc verify`, on documents that AWS signed, on documents of the software NSM, and on every numbered fault."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import cbor2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from infra.local_nsm import LocalNsm, create_pki
from mrgc.attest.chain import AWS_ROOT_SHA256
from mrgc.attest.cose import MAX_DOCUMENT_BYTES
from mrgc.cli_verify import LIVE_S
from mrgc.errors import AttestationError, MrgcError, PcrMismatch
from tests.attest.conftest import Genuine, genuine, pki
from tests.attest.forge import ABSENT, NOW, PCR0, Pki, document
from tests.attest.mutants import MUTANTS
from tests.cli.in_process import Done, mrgc

__all__ = ["genuine", "pki"]

PROD: Final = "blocky-nitro-prod.cbor"
SIGNED: Final = "evervault-prod-signed-eif.cbor"
DEBUG: Final = "blocky-nitro-debug.cbor"
TPM: Final = "vaportpm-nitrotpm.cbor"
PCRS: Final = {index: bytes([0xA0 + index]) * 48 for index in range(3)}
NONCE: Final = "5a" * 32
#: Mutant 24 lacks the public key that KMS demands, and that this command does not ask for.
JUDGED: Final = [name for name in MUTANTS if not name.startswith("24")]


@pytest.fixture
def root(pki: Pki, tmp_path: Path) -> str:
    """The forged root, as a file."""
    file = tmp_path / "root.pem"
    file.write_bytes(x509.load_der_x509_certificate(pki.root.der).public_bytes(Encoding.PEM))
    return str(file)


@pytest.fixture(scope="session")
def nsm_pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a software NSM."""
    directory: Path = tmp_path_factory.mktemp("nsm")
    create_pki(directory)
    return directory


def attested(
    nsm_pki: Path, folder: Path, *, clock: Callable[[], float] = time.time, pcrs: dict[int, bytes] = PCRS
) -> str:
    """Write a document of the software NSM, and return the file's name."""
    nsm = LocalNsm(nsm_pki, pcrs, clock=clock)
    file = folder / "document"
    file.write_bytes(nsm.attest(public_key=None, user_data=b"\x1b[2J", nonce=bytes.fromhex(NONCE)))
    return str(file)


def written(data: bytes, folder: Path) -> str:
    """Write a document, and return the file's name."""
    file = folder / "document"
    file.write_bytes(data)
    return str(file)


# --- documents that AWS signed ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [PROD, SIGNED])
def test_a_genuine_document_is_accepted_at_its_own_time(genuine: dict[str, Genuine], tmp_path: Path, name: str) -> None:
    """The report has what was recorded of the document, and says that nothing was compared."""
    facts = genuine[name].facts
    done = mrgc("verify", written(genuine[name].data, tmp_path), "--at", "document", "--json")
    assert done.code == 0, done
    assert done.fields["accepted"] is True
    assert done.fields["kind"] == "enclave"
    assert done.fields["module_id"] == facts["module_id"]
    assert done.fields["timestamp_ms"] == facts["timestamp_ms"]
    assert done.fields["pcrs"] == facts["pcrs"]
    assert done.fields["digest"] == "SHA384"
    assert done.fields["debug"] is False
    assert done.fields["root"] == {"sha256": AWS_ROOT_SHA256, "aws": True}
    assert done.fields["chain"]["certificates"] == 5
    validity = [done.fields["chain"][end].replace("Z", "+00:00") for end in ("valid_from", "valid_until")]
    assert validity == facts["checked_here"]["leaf_validity"]
    assert done.fields["policy"] == {"pcrs": {}, "nonce": None, "max_age_s": None, "allow_debug": False}


def test_a_person_reads_what_was_verified(genuine: dict[str, Genuine], tmp_path: Path) -> None:
    """Module, time, chain, root, each register with whether it was compared, and the policy that held."""
    facts = genuine[SIGNED].facts
    pins = ["--pcr", f"0={facts['pcrs']['0']}", "--pcr", f"PCR8={facts['pcrs']['8'].upper()}"]
    done = mrgc("verify", written(genuine[SIGNED].data, tmp_path), "--at", "document", *pins)
    assert done.code == 0, done
    assert done.err == ""
    for line in (
        f"accepted: enclave {facts['module_id']}",
        "timestamp    2022-10-13T08:58:02.136Z",
        "judged at    2022-10-13T08:58:02.136Z",
        f"root         {AWS_ROOT_SHA256} (AWS Nitro Enclaves Root-G1)",
        "chain        5 certificates, valid 2022-10-13T08:57:59Z to 2022-10-13T11:58:02Z",
        f"PCR0         {facts['pcrs']['0']} (as demanded)",
        f"PCR4         {facts['pcrs']['4']} (not compared)",
        f"PCR8         {facts['pcrs']['8']} (as demanded)",
        "zero         PCR5 PCR6 PCR7 PCR9 PCR10 PCR11 PCR12 PCR13 PCR14 PCR15",
        "public_key   none",
        "policy       PCR0, PCR8 as given; no nonce compared; archived record, any age; debug mode refused",
    ):
        assert line in done.out.splitlines()
    assert re.search(r"^nonce {8}[0-9a-f]{128}… \(256 bytes, SHA-256 [0-9a-f]{64}\)$", done.out, re.MULTILINE)


def test_without_a_pinned_register_the_report_says_so(genuine: dict[str, Genuine], tmp_path: Path) -> None:
    """A genuine document is some enclave's: nobody should take exit 0 for more."""
    done = mrgc("verify", written(genuine[PROD].data, tmp_path), "--at", "document")
    assert "no PCR compared: any enclave under this root is accepted" in done.out


@pytest.mark.parametrize(("hours", "code"), [(-3.1, 3), (-0.1, 3), (0.4, 0), (2.9, 0), (3.1, 3)])
def test_a_named_time_is_the_time_of_judgement(
    genuine: dict[str, Genuine], tmp_path: Path, hours: float, code: int
) -> None:
    """Any zone will do; outside the certificates' validity, or before the document, it is refused."""
    at = (genuine[PROD].at + timedelta(hours=hours)).isoformat()
    done = mrgc("verify", written(genuine[PROD].data, tmp_path), "--at", at, "--json")
    assert done.code == code, done
    if code:
        assert done.fields["class"] == "UntrustedChain"


def test_now_is_no_time_for_a_document_of_the_past(genuine: dict[str, Genuine], tmp_path: Path) -> None:
    """Without --at, an archived document is refused."""
    done = mrgc("verify", written(genuine[PROD].data, tmp_path))
    assert (done.code, done.out) == (3, "refused: UntrustedChain\n")
    assert done.err.startswith("mrgc: untrusted_chain: ")


def test_a_debug_document_needs_to_be_asked_for(genuine: dict[str, Genuine], tmp_path: Path) -> None:
    """Statement 6: zero PCRs are refused; for diagnosis they are accepted, and loudly."""
    file = written(genuine[DEBUG].data, tmp_path)
    refused = mrgc("verify", file, "--at", "document", "--json")
    assert (refused.code, refused.fields["class"], refused.fields["error"]) == (3, "DebugDocument", "debug_document")
    pinned = mrgc("verify", file, "--at", "document", "--pcr", f"4={genuine[DEBUG].facts['pcrs']['4']}")
    assert (pinned.code, pinned.out) == (3, "refused: DebugDocument\n")
    allowed = mrgc("verify", file, "--at", "document", "--allow-debug")
    assert allowed.code == 0
    assert "DEBUG MODE: the parent can read this enclave's memory" in allowed.out
    assert mrgc("verify", file, "--at", "document", "--allow-debug", "--json").fields["debug"] is True


def test_each_kind_passes_only_for_itself(genuine: dict[str, Genuine], tmp_path: Path) -> None:
    """Statement 6: the NitroTPM and the enclave kind are never taken for one another."""
    for name in (PROD, SIGNED, DEBUG, TPM):
        for kind in ("enclave", "nitrotpm"):
            done = mrgc(
                "verify", written(genuine[name].data, tmp_path), "--at", "document", "--kind", kind, "--allow-debug",
                "--json",
            )  # fmt: skip
            if (name == TPM) is (kind == "nitrotpm"):
                assert (done.code, done.fields["kind"]) == (0, kind)
            else:
                assert (done.code, done.fields["class"]) == (3, "DocumentKindError")


# --- documents of the software NSM --------------------------------------------------------------------------------


def test_a_live_document_is_accepted_under_its_own_root_only(nsm_pki: Path, tmp_path: Path) -> None:
    """Statement 6: a foreign root is refused; --root names another, and the report says that it is not AWS's."""
    file = attested(nsm_pki, tmp_path)
    asked = ["--pcr", f"0={PCRS[0].hex()}", "--nonce", NONCE]
    refused = mrgc("verify", file, *asked, "--json")
    assert (refused.code, refused.fields["class"]) == (3, "UntrustedChain")
    accepted = mrgc("verify", file, *asked, "--root", str(nsm_pki / "root.pem"))
    assert accepted.code == 0, accepted
    assert "(NOT the root of AWS)" in accepted.out
    assert "PCR0 as given; nonce as given; at most 300 s old; debug mode refused" in accepted.out
    assert f"nonce        {NONCE} (32 bytes) (as demanded)" in accepted.out


def test_nothing_in_a_document_acts_on_a_terminal(nsm_pki: Path, tmp_path: Path) -> None:
    """Fields that the enclave's caller chose are printed in hex."""
    done = mrgc("verify", attested(nsm_pki, tmp_path), "--root", str(nsm_pki / "root.pem"))
    assert done.code == 0
    assert "user_data    1b5b324a (4 bytes)" in done.out
    assert "\x1b" not in done.out


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["--pcr", "0=" + "0f" * 48], "PcrMismatch"),
        (["--pcr", "8=" + "0f" * 48], "PcrMismatch"),
        (["--pcr", "31=" + "00" * 48], "PcrMismatch"),
        (["--nonce", NONCE[:-2]], "NonceMismatch"),
        (["--kind", "nitrotpm"], "DocumentKindError"),
    ],
)
def test_what_is_demanded_and_not_so_is_refused(nsm_pki: Path, tmp_path: Path, arguments: list[str], name: str) -> None:
    """Each demand alone refuses a document that is otherwise good."""
    done = mrgc("verify", attested(nsm_pki, tmp_path), "--root", str(nsm_pki / "root.pem"), *arguments)
    assert (done.code, done.out) == (3, f"refused: {name}\n")


def test_a_live_document_is_at_most_five_minutes_old(nsm_pki: Path, tmp_path: Path) -> None:
    """Its certificates are valid for hours; what was true an hour ago is judged with --at, or not at all."""
    root = str(nsm_pki / "root.pem")
    old = attested(nsm_pki, tmp_path, clock=lambda: time.time() - LIVE_S - 30)
    assert mrgc("verify", old, "--root", root).out == "refused: DocumentStale\n"
    assert mrgc("verify", old, "--root", root, "--at", datetime.now(UTC).isoformat()).code == 0


def test_standard_input_is_a_file_too(nsm_pki: Path, tmp_path: Path) -> None:
    """- reads the document from a pipe."""
    data = Path(attested(nsm_pki, tmp_path)).read_bytes()
    done = mrgc("verify", "-", "--root", str(nsm_pki / "root.pem"), "--json", stdin=data)
    assert (done.code, done.fields["nonce"]) == (0, NONCE)


# --- every numbered fault -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", JUDGED)
def test_a_mutant_ends_with_3_and_its_class(pki: Pki, tmp_path: Path, name: str) -> None:
    """Statement 6: at the command line, what the verifier refuses, the command refuses with the same class."""
    mutant = MUTANTS[name]
    case = mutant.case(pki)
    root = tmp_path / "root.pem"
    root.write_bytes(x509.load_der_x509_certificate(case.root.der).public_bytes(Encoding.PEM))
    arguments = ["--root", str(root), "--at", case.at.isoformat()]
    for index, value in case.policy.pcrs.items():
        arguments += ["--pcr", f"{index}={value.hex()}"]
    if case.policy.nonce is not None:
        arguments += ["--nonce", case.policy.nonce.hex()]
    done = mrgc("verify", written(case.data, tmp_path), *arguments, "--json")
    assert done.code == 3, done
    assert done.fields["accepted"] is False
    assert done.fields["class"] == mutant.refusal.__name__
    assert done.fields["error"] == mutant.refusal.code
    assert done.err == f"mrgc: {mutant.refusal.code}: {done.fields['reason']}\n"


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"public_key": ABSENT, "user_data": ABSENT, "nonce": ABSENT}, id="absent optionals"),
        pytest.param({"public_key": None, "user_data": None, "nonce": None}, id="null optionals"),
        pytest.param({"public_key": b"k" * 1024, "user_data": b"u" * 1024, "nonce": b"n" * 1024}, id="1024 bytes"),
        pytest.param({"something": {"new": [1, None]}}, id="unknown key"),
    ],
)
@pytest.mark.parametrize("tag", [b"", b"\xd2"], ids=["untagged", "tag 18"])
def test_what_genuine_documents_may_be_is_accepted(
    pki: Pki, root: str, tmp_path: Path, tag: bytes, changes: dict[str, Any]
) -> None:
    """Everything that a verifier must accept, accepted at the command line; absent and null are the same."""
    file = written(tag + document(pki, **changes), tmp_path)
    done = mrgc("verify", file, "--root", root, "--at", NOW.isoformat(), "--pcr", f"0={PCR0.hex()}", "--json")
    assert done.code == 0, done
    for name in ("public_key", "user_data", "nonce"):
        value = changes.get(name)
        assert done.fields[name] == (value.hex() if isinstance(value, bytes) else None)


def test_every_class_of_refusal_occurs_here() -> None:
    """The numbered faults provoke each class that a document can be refused with."""
    classes = {cls for cls in AttestationError.__subclasses__() if cls.__module__ == MrgcError.__module__}
    assert {mutant.refusal for mutant in MUTANTS.values()} == classes - {PcrMismatch}  # which is no document's fault


# --- usage --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["absent.cbor"],
        ["."],
        ["document", "document"],
        ["document", "--kind", "tpm"],
        ["document", "--pcr", "0"],
        ["document", "--pcr", ""],
        ["document", "--pcr", "0="],
        ["document", "--pcr", "0=" + "0f" * 32],
        ["document", "--pcr", "0=" + "0f" * 49],
        ["document", "--pcr", "0=" + "0g" * 48],
        ["document", "--pcr", "00=" + "0f" * 48],
        ["document", "--pcr", "32=" + "0f" * 48],
        ["document", "--pcr", "-1=" + "0f" * 48],
        ["document", "--pcr", "0=" + "0f" * 48, "--pcr", "PCR0=" + "0e" * 48],
        ["document", "--nonce", ""],
        ["document", "--nonce", "5"],
        ["document", "--nonce", "5a 5a"],
        ["document", "--nonce", "5a" * 1025],
        ["document", "--at", ""],
        ["document", "--at", "yesterday"],
        ["document", "--at", "2026-11-22"],
        ["document", "--at", "2026-11-22T18:00:00"],
        ["document", "--root", "absent.pem"],
        ["document", "--root", "document"],
        ["document", "--no-chain"],
    ],
)
def test_wrong_usage_is_2_and_judges_nothing(
    nsm_pki: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    """A demand that cannot be read, an empty variable among them, is never taken for no demand."""
    attested(nsm_pki, tmp_path)
    monkeypatch.chdir(tmp_path)
    done = mrgc("verify", *arguments)
    assert (done.code, done.out) == (2, ""), done
    assert "Traceback" not in done.err


def test_two_roots_in_one_file_are_wrong_usage(nsm_pki: Path, tmp_path: Path) -> None:
    """Which of two would be trusted must not be a matter of order."""
    pem = (nsm_pki / "root.pem").read_bytes()
    (tmp_path / "two.pem").write_bytes(pem + pem)
    done = mrgc("verify", attested(nsm_pki, tmp_path), "--root", str(tmp_path / "two.pem"))
    assert (done.code, done.out) == (2, "")


@pytest.mark.parametrize("size", [0, 1, MAX_DOCUMENT_BYTES + 1, 1 << 20])
def test_a_file_of_any_size_is_refused_and_no_more_than_a_document_of_it_is_read(tmp_path: Path, size: int) -> None:
    """Nothing, one byte, one byte too many and a megabyte are refused as documents."""
    done = mrgc("verify", written(b"\x84" * size, tmp_path), "--json")
    assert (done.code, done.fields["class"]) == (3, "DocumentFormatError")


def test_a_pipe_that_never_ends_is_refused_once_it_is_too_long() -> None:
    """The size cap comes before the reading: a verdict on /dev/zero needs no more memory than one on a document."""
    limited = "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))"
    done = subprocess.run(
        [sys.executable, "-c", f"{limited}; from mrgc.cli import main; main()", "verify", "/dev/zero"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env=dict(os.environ) | {"PYTHONWARNINGS": "error"},
    )
    assert (done.returncode, done.stdout) == (3, "refused: DocumentFormatError\n")
    assert done.stderr == "mrgc: document_format: document is too large\n"


def test_a_payload_cannot_choose_the_root(pki: Pki, tmp_path: Path) -> None:
    """Statement 6: a complete chain inside the document is no reason to believe it."""
    data = document(pki)
    assert cbor2.loads(cbor2.loads(data)[2])["cabundle"][0] == pki.root.der
    done: Done = mrgc("verify", written(data, tmp_path), "--at", NOW.isoformat())
    assert done.out == "refused: UntrustedChain\n"
