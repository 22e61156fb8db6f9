"""PCR values from the files that builders publish, and what is refused in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest

from mrgc.errors import ConfigError
from mrgc.measurements import extend_zero, parse_pcr, read_measurements

#: What `nitro-cli build-enclave` prints for an image that is signed; values of its own sample.
PRINTED: Final = {
    "Measurements": {
        "HashAlgorithm": "Sha384 { ... }",
        "PCR0": "6be47f8386175bc4853c3b821f9e6fa6f65f8bd73492d1df99ba9dd0d734e11c8941e7415d9167f7d0ea6991790566a7",
        "PCR1": "0343b056cd8485ca7890ddd833476d78460aed2aa161548e4e26bedf321726696257d623e8805f3f605946b3d8b0c6aa",
        "PCR2": "dd61366a5424eea46f60c4e9d59e6c645a46420ccf962550ee1f3c109d230f88ec23667617aeaac425a1f50fe8e384d7",
        "PCR8": "8790eb3cce6c83d07e84b126dc61ca923333d6f66615c4a79157de48c5ab2418bdc60746ea7b7afbff03a1c6210201cb",
    }
}
PCRS: Final = {int(name[3:]): value for name, value in PRINTED["Measurements"].items() if name.startswith("PCR")}
ZERO: Final = "00" * 48


def read(folder: Path, content: Any) -> dict[int, bytes]:
    """Read a file of this content."""
    file = folder / "pcr-values.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_measurements(file)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(PRINTED, id="nitro-cli build-enclave"),
        pytest.param({"EifVersion": 4, "IsSigned": True, **PRINTED}, id="nitro-cli describe-eif"),
        pytest.param({f"PCR{index}": value for index, value in PCRS.items()}, id="bare map"),
        pytest.param({f"pcr{index}": value.upper() for index, value in PCRS.items()}, id="other case"),
        pytest.param(json.dumps(PRINTED, indent=2) + "\n", id="as printed"),
    ],
)
def test_every_form_gives_the_same_registers(tmp_path: Path, content: Any) -> None:
    """Whatever is around them, PCR0, 1, 2 and 8 are read as bytes."""
    assert read(tmp_path, content) == {index: bytes.fromhex(value) for index, value in PCRS.items()}


def test_a_stacks_catalog_is_enough(tmp_path: Path) -> None:
    """PCR0 alone says which image runs."""
    catalog = {"models": [{"name": "m", "dimensions": 384}], "pcr0": PCRS[0]}
    assert read(tmp_path, catalog) == {0: bytes.fromhex(PCRS[0])}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({}, "no PCR0"),
        ({"PCR3": PCRS[1], "PCR4": PCRS[2]}, "no PCR0.*PCR3, PCR4: the parent"),
        ({"PCR2": PCRS[2]}, "no PCR0"),
        ({"PCR8": PCRS[8]}, "no PCR0"),
        ({"PCR0": ZERO}, "PCR0 is zero: every enclave in debug mode"),
        ({"PCR0": ZERO, "PCR1": ZERO, "PCR2": ZERO}, "PCR0, PCR1, PCR2 is zero"),
        ({"PCR0": PCRS[0], "PCR2": ZERO}, "PCR2 is zero"),
        ({"PCR0": "ab" * 32}, "PCR0 is not one register of 96 hex digits"),
        ({"PCR0": "ab" * 64}, "PCR0 is not"),
        ({"PCR0": "ab" * 47}, "PCR0 is not"),
        ({"PCR0": ""}, "PCR0 is not"),
        ({"PCR0": "zz" * 48}, "PCR0 is not"),
        ({"PCR0": PCRS[0] + "\n"}, "PCR0 is not"),
        ({"PCR0": 1}, "PCR0 is not"),
        ({"PCR0": None}, "PCR0 is not"),
        ({"PCR0": PCRS[0], "pcr0": PCRS[0]}, "PCR0 is not"),
        ({"PCR0": PCRS[0], "PCR8": "ab" * 32}, "PCR8 is not"),
        ({"PCR0": PCRS[0], "PCR32": PCRS[0]}, "PCR32 is not"),
        ({"Measurements": {"HashAlgorithm": "Sha256 { ... }", "PCR0": PCRS[0]}}, "HashAlgorithm is not Sha384"),
        ({"Measurements": {"HashAlgorithm": 384, "PCR0": PCRS[0]}}, "HashAlgorithm"),
        ({"Measurements": [PRINTED]}, "not an object"),
        ({"Measurements": {}, "PCR0": PCRS[0]}, "no PCR0"),
        ([PRINTED], "not an object"),
        ("", "not json"),
        ("PCR0 " + PCRS[0], "not json"),
        (json.dumps({"PCR0": PCRS[0], "x": PCRS[1]}).replace('"x"', '"PCR0"'), "a name twice"),
        ("[" * 1000, "nested too deeply"),
        (" " * (1 << 20) + "{}", "too large"),
    ],
)
def test_a_file_that_would_admit_too_much_is_refused(tmp_path: Path, content: Any, says: str) -> None:
    """Statement 6: zeros, PCR3 and PCR4 alone, other digests, and everything that is not clear."""
    with pytest.raises(ConfigError, match=says):
        read(tmp_path, content)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """The error has the file's name."""
    with pytest.raises(ConfigError, match=r"absent\.json: No such file"):
        read_measurements(tmp_path / "absent.json")


def test_a_register_is_hex_and_nothing_else() -> None:
    """White space and prefixes, which `bytes.fromhex` would forgive, are refused."""
    assert parse_pcr(PCRS[0]) == bytes.fromhex(PCRS[0])
    for wrong in ("", " " + PCRS[0], "0x" + PCRS[0][2:], PCRS[0][:-1], PCRS[0] + "00", PCRS[0][:-1] + " "):
        with pytest.raises(ConfigError):
            parse_pcr(wrong)


def test_pcr4_is_what_the_hypervisor_makes_of_an_instance_id() -> None:
    """Of two documents that AWS signed, the register follows from the instance."""
    for instance, pcr4 in (
        ("i-0a22e5c5f24d22174",
         "45706d7b621e4620a332e147a5ddb000b049f73d47d3e61f6b03d2069152d4df6a4a786ad1c10102b955799a9dc96b44"),
        ("i-020b6af9246d90e92",
         "1f442c86d494a88185642086d904ed89f62fb66ee9997d7b1a4f040faab3bba4244c768a584e5778195b3afc715637c6"),
    ):  # fmt: skip
        assert extend_zero(instance).hex() == pcr4
