"""`python -m infra.eif describe`: what a person and a script get of an image."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from infra.eif import __main__ as command
from infra.eif import reader, writer
from infra.eif.signature import Signer
from infra.eif.writer import Contents
from mrgc.measurements import read_measurements


@pytest.fixture
def file(contents: Contents, signer: Signer, tmp_path: Path) -> Path:
    """Write a small signed image."""
    path = tmp_path / "small.eif"
    writer.write(path, replace(contents, signer=signer))
    return path


def test_the_json_is_what_the_tenants_tool_reads(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`mrgc policy` takes the description as it is, and finds the image's own registers in it."""
    assert command.main(["describe", "--json", str(file)]) == 0
    described = file.with_suffix(".json")
    described.write_text(capsys.readouterr().out)
    assert read_measurements(described) == reader.read(file).pcrs


def test_the_json_lists_the_sections(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Sections come with type, place and length, and the members that nitro-cli has are named as there."""
    command.main(["describe", "--json", str(file)])
    described = json.loads(capsys.readouterr().out)
    types = ["kernel", "command line", "metadata", "ramdisk", "ramdisk", "signature"]
    assert [section["Type"] for section in described["Sections"]] == types
    assert (described["EifVersion"], described["CheckCRC"], described["IsSigned"]) == (4, True, True)
    assert described["SigningCertificate"]["Subject"] == "CN=release"


def test_a_person_sees_registers_and_signer(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The text names every register with its meaning, and who signed."""
    assert command.main(["describe", str(file)]) == 0
    text = capsys.readouterr().out
    for index, value in reader.read(file).pcrs.items():
        assert f"PCR{index}  {value.hex()}" in text
    assert "signed by CN=release" in text


def test_a_name_cannot_write_to_the_terminal(
    contents: Contents, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Escape sequences in the metadata of a foreign image are shown, not obeyed."""
    file = tmp_path / "hostile.eif"
    writer.write(file, replace(contents, metadata={"ImageName": "\x1b]0;owned\x07\u202e"}))
    command.main(["describe", str(file)])
    text = capsys.readouterr().out
    assert text.isascii()
    assert "\x1b" not in text


def test_a_refused_file_ends_with_one_and_its_reason(tmp_path: Path) -> None:
    """A script tells a refused image (1) from a wrong call (2), and nothing but the reason is printed."""
    bad = tmp_path / "bad.eif"
    bad.write_bytes(b"not an image")
    for path, status in ((bad, 1), (tmp_path / "absent.eif", 2)):
        done = subprocess.run(
            [sys.executable, "-m", "infra.eif", "describe", str(path)],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (status, "", 1)
        assert path.name in done.stderr
