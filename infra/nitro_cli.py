"""AWS's nitro-cli as a few calls: run an enclave, list those that run, end one.

Its answers are JSON on standard output (aws-nitro-enclaves-cli, src/common/json_output.rs). Called by `infra.nitro`.
May import: the standard library, mrgc.errors.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any, Final, NamedTuple

from mrgc.errors import ConfigError

#: Booting hands memory over page by page: seconds per gigabyte.
CALL_S: Final = 300.0
RUNNING: Final = "RUNNING"
#: What describe-enclaves says of one that was not started in debug mode.
NO_FLAGS: Final = "NONE"
_SHOWN_CHARS: Final = 500


class RunningEnclave(NamedTuple):
    """One entry of describe-enclaves."""

    id: str
    name: str
    cid: int
    state: str
    flags: str
    #: Hex, as nitro-cli measured it; empty where it does not say.
    pcr0: str


class Size(NamedTuple):
    """What an enclave gets of its parent."""

    memory_mib: int
    cpus: int


def run_enclave(image: Path, *, name: str, cid: int, size: Size) -> None:
    """Start an enclave, never in debug mode: its memory stays closed and its PCRs are real.

    Raises:
        ConfigError: nitro-cli refuses; says what it says.
    """
    _call(
        *("run-enclave", "--eif-path", str(image), "--enclave-name", name, "--enclave-cid", str(cid)),
        *("--memory", str(size.memory_mib), "--cpu-count", str(size.cpus)),
    )


def describe_enclaves() -> list[RunningEnclave]:
    """Return the enclaves of this parent.

    Raises:
        ConfigError: nitro-cli fails, or answers another shape.
    """
    try:
        return [
            RunningEnclave(
                id=str(each["EnclaveID"]),
                name=str(each["EnclaveName"]),
                cid=int(each["EnclaveCID"]),
                state=str(each["State"]),
                flags=str(each["Flags"]),
                pcr0=str(each.get("Measurements", {}).get("PCR0", "")),
            )
            for each in _call("describe-enclaves")
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError("nitro-cli describe-enclaves answers another shape than this code knows") from error


def terminate_enclave(enclave_id: str) -> None:
    """End an enclave; its memory is scrubbed by the hypervisor.

    Raises:
        ConfigError: nitro-cli refuses.
    """
    _call("terminate-enclave", "--enclave-id", enclave_id)


def _call(*arguments: str) -> Any:
    try:
        done = subprocess.run(
            ["nitro-cli", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=CALL_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"nitro-cli {arguments[0]}: {type(error).__name__}") from error
    if done.returncode != 0:
        raise ConfigError(f"nitro-cli {arguments[0]}: {done.stderr.strip()[-_SHOWN_CHARS:]}")
    try:
        return json.loads(done.stdout or "null")
    except json.JSONDecodeError as error:
        raise ConfigError(f"nitro-cli {arguments[0]}: its answer is not JSON") from error
