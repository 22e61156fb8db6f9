"""PCR values as an enclave's builder publishes them: a file for `mrgc policy`, a value for `mrgc verify`.

Read are `pcr-values.json`, which is what `nitro-cli build-enclave` and `describe-eif` print, the bare map inside it,
and the `catalog.json` of a one-machine stack. Called by the tenant's verification commands. May import: the standard
library, mrgc.attest.document, mrgc.errors, mrgc.wire.strict_json.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from mrgc.attest.document import IMAGE_PCRS, MAX_PCRS, PCR_BYTES
from mrgc.errors import ConfigError, FormatError
from mrgc.wire import strict_json

#: A catalog lists models beside its PCR0; nothing else in these files is long.
_MAX_FILE_BYTES: Final = 1 << 20
_MAX_VALUES: Final = 100_000

_HEX: Final = re.compile(r"[0-9A-Fa-f]{96}")
_NAME: Final = re.compile(r"pcr(0|[1-9][0-9]?)", re.IGNORECASE)
_ALGORITHM: Final = re.compile(r"sha384\b.*", re.IGNORECASE | re.DOTALL)


def parse_pcr(text: str) -> bytes:
    """Return the 48 bytes of one register from its hex.

    Raises:
        ConfigError: not 96 hex digits.
    """
    if _HEX.fullmatch(text) is None:
        raise ConfigError(f"a PCR is {2 * PCR_BYTES} hex digits (SHA-384)")
    return bytes.fromhex(text)


def extend_zero(identity: str) -> bytes:
    """Return what PCR3 is for a role's ARN, and PCR4 for an instance id: SHA-384(48 zero bytes ‖ text).

    AWS: Nitro Enclaves User Guide, "Where to get an enclave's measurements".
    """
    return hashlib.sha384(bytes(PCR_BYTES) + identity.encode()).digest()


def read_measurements(file: Path) -> dict[int, bytes]:
    """Read the registers of one image; PCR0 is among them.

    Args:
        file: JSON: {"Measurements": {"HashAlgorithm": "Sha384 { ... }", "PCR0": hex, …}}, {"PCR0": hex, …}, or an
            object with "pcr0". Other members are left alone.

    Returns:
        Index → 48 bytes, none of PCR0, PCR1 and PCR2 zero.

    Raises:
        ConfigError: the file cannot be read, is of another form, lacks PCR0, or holds the measurements of debug mode.
    """
    pcrs = _registers(_measurements(file), file)
    if 0 not in pcrs:
        raise ConfigError(f"{file}: no PCR0: the other registers do not say which image runs (PCR3, PCR4: the parent)")
    zero = [f"PCR{index}" for index in IMAGE_PCRS if index in pcrs and not any(pcrs[index])]
    if zero:
        raise ConfigError(f"{file}: {', '.join(zero)} is zero: every enclave in debug mode has that value")
    return pcrs


def _measurements(file: Path) -> Mapping[str, Any]:
    try:
        with file.open("rb") as stream:
            data = stream.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from error
    if len(data) > _MAX_FILE_BYTES:
        raise ConfigError(f"{file}: too large for a list of PCRs")
    try:
        fields = strict_json.parse(data, max_values=_MAX_VALUES)
    except FormatError as error:
        raise ConfigError(f"{file}: {error}") from error
    found = fields.get("Measurements", fields) if isinstance(fields, dict) else None
    if not isinstance(found, dict):
        raise ConfigError(f"{file}: not an object with PCRs")
    algorithm = found.get("HashAlgorithm", "Sha384")
    if not isinstance(algorithm, str) or _ALGORITHM.fullmatch(algorithm) is None:
        raise ConfigError(f"{file}: HashAlgorithm is not Sha384")
    return found


def _registers(found: Mapping[str, Any], file: Path) -> dict[int, bytes]:
    pcrs: dict[int, bytes] = {}
    for name, value in found.items():
        matched = _NAME.fullmatch(name)
        if matched is None:
            continue
        index = int(matched[1])
        if index >= MAX_PCRS or index in pcrs or not isinstance(value, str) or _HEX.fullmatch(value) is None:
            raise ConfigError(f"{file}: PCR{index} is not one register of {2 * PCR_BYTES} hex digits (SHA-384)")
        pcrs[index] = bytes.fromhex(value)
    return pcrs
