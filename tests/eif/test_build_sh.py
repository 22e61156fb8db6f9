"""build.sh: one command for an image, and the way over docker and nitro-cli where those are."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from infra.eif import __main__ as command
from infra.eif import reader
from infra.eif.build import Plan, build
from infra.eif.fetch import CACHE, PackageCache
from infra.eif.measurement import signer_pcr
from infra.eif.signature import Signer
from mrgc.measurements import read_measurements

ROOT: Final = Path(__file__).parents[2]

#: What the two foreign programs do as far as build.sh sees: docker takes a context, nitro-cli writes image and JSON.
DOCKER: Final = '#!/bin/bash\ntest -s "${!#}/rootfs.tar" && echo "$@" > "$OUT/docker.args"\n'
NITRO_CLI: Final = '#!/bin/bash\necho "$@" > "$OUT/nitro.args"\ncp "$IMAGE" "$OUT/mrgc-enclave.eif"\ncat "$STATED"\n'

pytestmark = pytest.mark.timeout(300)


def run(*arguments: str, path: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run build.sh with these programs and nothing of the developer's environment."""
    return subprocess.run(
        ["bash", str(ROOT / "build.sh"), *arguments],
        env={"PATH": path, "PYTHON": sys.executable, **environment},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.fixture
def programs(tmp_path: Path) -> str:
    """Put a docker and a nitro-cli in front of the machine's programs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in {"docker": DOCKER, "nitro-cli": NITRO_CLI}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_nitro_clis_image_is_measured_again(built: Path, programs: str, tmp_path: Path) -> None:
    """The same three files come out, and the PCRs are those that our own reader measures."""
    done = run(
        *("--nitro-cli", "--out", str(tmp_path)),
        path=programs,
        OUT=str(tmp_path),
        IMAGE=str(built / "mrgc-enclave.eif"),
        STATED=str(built / "pcr-values.json"),
    )
    assert done.returncode == 0, done.stderr
    assert read_measurements(tmp_path / "pcr-values.json") == reader.read(tmp_path / "mrgc-enclave.eif").pcrs
    assert (tmp_path / "build-output.json").read_text() == (built / "pcr-values.json").read_text()
    assert "enclave/Dockerfile" in (tmp_path / "docker.args").read_text()
    assert f"--output-file {tmp_path}/mrgc-enclave.eif" in (tmp_path / "nitro.args").read_text()


def test_two_tools_that_disagree_give_no_pcrs(built: Path, programs: str, tmp_path: Path) -> None:
    """Where nitro-cli's registers are not those of the file it wrote, nothing is published."""
    stated = json.loads((built / "pcr-values.json").read_text())
    stated["Measurements"]["PCR2"] = "ab" * 48
    (tmp_path / "stated.json").write_text(json.dumps(stated))
    done = run(
        *("--nitro-cli", "--out", str(tmp_path)),
        path=programs,
        OUT=str(tmp_path),
        IMAGE=str(built / "mrgc-enclave.eif"),
        STATED=str(tmp_path / "stated.json"),
    )
    assert done.returncode == 1
    assert "PCR [2] is not what" in done.stderr
    assert not (tmp_path / "pcr-values.json").exists()


def test_without_docker_its_way_ends_with_a_reason(tmp_path: Path) -> None:
    """A machine without the two programs is told which one it lacks; wrong arguments are refused before."""
    for name in ("dirname", "bash"):
        (tmp_path / name).symlink_to(shutil.which(name) or "")
    done = run("--nitro-cli", path=str(tmp_path))
    assert (done.returncode, done.stderr) == (2, "build.sh: --nitro-cli needs docker, which is not here\n")
    assert run("--nitro-cli", "--vm", path=str(tmp_path)).returncode == 2


def test_another_kernel_boots_with_its_own_driver(cache: PackageCache, tmp_path: Path) -> None:
    """--kernel takes AWS's kernel; its nsm.ko beside it is the only module, and Debian's kernel is not needed."""
    (tmp_path / "bzImage").write_bytes(b"kernel" * 1000)
    (tmp_path / "nsm.ko").write_bytes(b"driver")
    output = build(Plan(kernel=tmp_path / "bzImage"), cache, out=tmp_path / "out")
    paths = [node["Path"] for node in output["Ramdisks"][0]]
    assert paths == ["dev", "init", "modules", "modules/nsm.ko", "modules/order", "proc"]
    assert reader.read(tmp_path / "out" / "mrgc-enclave.eif").kernel.size == 6000
    assert not any(pin["name"].startswith("linux-image-") for pin in output["Packages"])


def test_a_virtual_machines_image_has_another_pcr0_and_may_trust_another_kms(built: Path, tmp_path: Path) -> None:
    """What the kernel is told is in PCR0 and PCR1, and other roots for KMS are in PCR0 and PCR2."""
    roots = tmp_path / "ca.pem"
    roots.write_text("another root")
    arguments = ["build", "--vm", "--out", str(tmp_path), "--kms-roots", str(roots), "--cache", str(CACHE)]
    assert command.main(arguments) == 0
    plain, other = (reader.read(folder / "mrgc-enclave.eif") for folder in (built, tmp_path))
    assert [plain.pcrs[index] == other.pcrs[index] for index in (0, 1, 2)] == [False, False, False]
    assert "mrgc.parent_cid=2" in other.command_line
    assert "mrgc." not in plain.command_line


@pytest.mark.usefixtures("cache")
def test_a_signed_image_publishes_its_signers_register(signer: Signer, tmp_path: Path) -> None:
    """With key and certificate on the command line, pcr-values.json has PCR8, and signing again gives the same file."""
    (tmp_path / "bzImage").write_bytes(b"kernel" * 1000)
    (tmp_path / "key.pem").write_bytes(signer.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (tmp_path / "certificate.pem").write_bytes(signer.certificate.public_bytes(Encoding.PEM))
    arguments = ["build", "--kernel", str(tmp_path / "bzImage"), "--cache", str(CACHE)]
    arguments += ["--sign-key", str(tmp_path / "key.pem"), "--sign-certificate", str(tmp_path / "certificate.pem")]
    images = []
    for name in ("once", "twice"):
        assert command.main([*arguments, "--out", str(tmp_path / name)]) == 0
        images.append((tmp_path / name / "mrgc-enclave.eif").read_bytes())
    assert images[0] == images[1]
    published = read_measurements(tmp_path / "once" / "pcr-values.json")
    assert published[8] == signer_pcr(signer.certificate.public_bytes(Encoding.DER))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--kms-roots", "ca.pem"], "--kms-roots goes with --vm only"),
        (["--sign-key", "key.pem"], "go together"),
        (["--sign-key", "absent.pem", "--sign-certificate", "absent.pem"], "absent.pem: No such file"),
        (["--mirror", "bookworm"], "--mirror takes SUITE=URI"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(
    arguments: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is built from arguments that contradict each other."""
    assert command.main(["build", "--out", str(tmp_path), "--cache", str(CACHE), *arguments]) == 2
    assert reason in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
