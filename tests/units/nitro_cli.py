"""Takes nitro-cli's place: keeps a list of enclaves in STATE/enclaves.json and answers as nitro-cli's JSON output does.

What is under test is whoever calls it; there is no Nitro hypervisor to start anything on.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

STATE = Path(os.environ["STATE"])


def enclaves() -> list[dict[str, Any]]:
    """Return the listed enclaves."""
    file = STATE / "enclaves.json"
    found: list[dict[str, Any]] = json.loads(file.read_text()) if file.exists() else []
    return found


def main() -> int:
    """Carry out one command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("command")
    for name in ("--eif-path", "--enclave-name", "--enclave-cid", "--memory", "--cpu-count", "--enclave-id"):
        parser.add_argument(name)
    options = parser.parse_args()
    with (STATE / "calls").open("a") as calls:
        calls.write(f"{' '.join(sys.argv[1:])}\n")
    known = enclaves()
    if options.command == "run-enclave":
        known.append(
            {
                "EnclaveName": options.enclave_name,
                "EnclaveID": f"i-0123456789abcdef0-enc{len(known):016x}",
                "ProcessID": 1,
                "EnclaveCID": int(options.enclave_cid),
                "NumberOfCPUs": int(options.cpu_count),
                "CPUIDs": [1, 3],
                "MemoryMiB": int(options.memory),
            }
            | {"State": "RUNNING", "Flags": "NONE"}
            | json.loads((STATE / "differs.json").read_text())
        )
    elif options.command == "terminate-enclave":
        known = [each for each in known if each["EnclaveID"] != options.enclave_id]
    (STATE / "enclaves.json").write_text(json.dumps(known))
    print(json.dumps(known if options.command == "describe-enclaves" else known[-1:]))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
