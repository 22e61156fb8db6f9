"""The enclave on one machine: the product's own enclave code behind a unix socket, with a software NSM.

A composition root and nothing else. The same `enclave.enclave_app.build` as in production gets another NSM, another
dialler and another CA bundle; no code of the enclave knows the difference. Its documents are signed under a throw-away
root, so nothing that pins the AWS root can accept them. Run as `python -m infra.local_enclave`.

May import: the standard library, enclave, mrgc.wire, infra.local_nsm.
"""

from __future__ import annotations

import argparse
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Final

from enclave import enclave_app
from enclave.hardening import harden
from infra.local_nsm import LocalNsm, measure
from mrgc.wire.addresses import listen, parse_address

REPOSITORY: Final = Path(__file__).resolve().parent.parent
#: What the process runs besides the interpreter and its pinned packages; the measurement covers it.
MEASURED: Final = (
    REPOSITORY / "enclave",
    REPOSITORY / "mrgc" / "errors.py",
    REPOSITORY / "mrgc" / "wire",
    REPOSITORY / "mrgc" / "attest",
    Path(__file__).resolve(),
    REPOSITORY / "infra" / "local_nsm.py",
    REPOSITORY / "infra" / "nsm_chain.py",
    REPOSITORY / "infra" / "eif" / "measurement.py",
    REPOSITORY / "infra" / "durable_file.py",
)


def pcrs() -> dict[int, bytes]:
    """PCR0, PCR1 and PCR2 of the enclave that this file starts."""
    return measure(MEASURED)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m infra.local_enclave", description=__doc__)
    parser.add_argument("--listen", required=True, help="unix:PATH of the enclave socket")
    parser.add_argument("--nsm", required=True, type=Path, help="directory made by infra.local_nsm.create_pki")
    parser.add_argument("--kms-port", required=True, type=int, help="loopback port of infra.local_kms")
    parser.add_argument("--ca", required=True, help="PEM file that the KMS certificate must chain to")
    options = parser.parse_args(argv)

    def dial(_host: str, timeout_s: float) -> socket.socket:
        return socket.create_connection(("127.0.0.1", options.kms_port), timeout=timeout_s)

    harden()
    enclave = enclave_app.build(LocalNsm(options.nsm, pcrs()), dial, options.ca)

    def stop(_signum: int, _frame: FrameType | None) -> None:
        enclave.stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    enclave.serve(listen(parse_address(options.listen), backlog=64))
    return 0


if __name__ == "__main__":
    sys.exit(main())
