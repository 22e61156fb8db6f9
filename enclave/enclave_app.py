"""The enclave's composition: `main` wires it for production, `build` for any NSM, dialler and CA bundle.

There is no switch in here or behind it that turns attestation off. The one-machine stack calls `build` with an NSM
whose root nobody else trusts. Run as `python -m enclave.enclave_app`.

May import: the standard library, enclave, mrgc.errors, mrgc.wire.
"""

from __future__ import annotations

import argparse
import logging
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Final

from enclave.attestation import Attestation
from enclave.connection import Limits
from enclave.counters import Counters
from enclave.credentials import CredentialStore
from enclave.data_keys import DataKeys
from enclave.hardening import harden
from enclave.kms_calls import KmsCalls
from enclave.kms_handler import KmsHandler
from enclave.kms_regions import proxy_port
from enclave.kms_transport import Dial
from enclave.nsm import Nsm, NsmDevice
from enclave.operations import Operations, Parts
from enclave.server import MAX_CONNECTIONS, Server
from mrgc.errors import InternalError
from mrgc.wire.addresses import PARENT_CID, VsockAddress, connect, listen
from mrgc.wire.frames import SLICE_BYTES

logger = logging.getLogger(__name__)

PORT: Final = 5_000  #: docs/spec.md §6, AF_VSOCK.
#: The roots that may vouch for KMS; beside the code, so that the image's measurement covers them.
CA_FILE: Final = Path(__file__).resolve().with_name("kms-roots.pem")
TICK_S: Final = 1.0  #: How late an overdue connection is cut, and an aged key zeroed.
_ENTROPY_BYTES: Final = 256


class Enclave:
    """One boot of the enclave.

    Args:
        nsm: signs attestation documents.
        dial: opens a stream towards a KMS host.
        ca_file: PEM roots that may vouch for KMS.
        limits: how long a peer may keep the enclave waiting.

    Raises:
        NsmError: no first attestation document could be made; without one there is neither a clock nor KMS.
    """

    def __init__(self, nsm: Nsm, dial: Dial, ca_file: str, *, limits: Limits | None = None) -> None:
        counters = Counters()
        self._attestation = Attestation(nsm, counters)
        self._attestation.renew()
        credentials = CredentialStore()
        self._kms = KmsHandler(self._attestation, credentials, dial=dial, ca_file=ca_file)
        self._kms_calls = KmsCalls(counters)
        self._data_keys = DataKeys(self._kms.unwrap, self._kms_calls, counters)
        parts = Parts(
            attestation=self._attestation,
            credentials=credentials,
            kms=self._kms,
            kms_calls=self._kms_calls,
            data_keys=self._data_keys,
            counters=counters,
        )
        self._server = Server(Operations(parts), counters, limits)
        self._stopping = threading.Event()
        self._is_broken = False

    def serve(self, listener: socket.socket) -> None:
        """Serve until `stop`; the listener is closed and every key zeroed when this returns.

        Raises:
            InternalError: a defect has ended the thread that renews documents, or the one that cuts connections and
                zeroes aged keys. An enclave without them would go on, silently, and never recover.
        """
        works = {"attestation": partial(self._attestation.keep_renewing, self._stopping), "house": self._keep_house}
        threads = [threading.Thread(target=self._vital, args=(work,), name=name) for name, work in works.items()]
        for thread in threads:
            thread.start()
        try:
            self._server.serve(listener)
        finally:
            self._stopping.set()
            for thread in threads:
                thread.join()
            self._kms_calls.close()
            self._data_keys.close()
            self._kms.close()
        if self._is_broken:
            raise InternalError("a thread that the enclave needs has died")

    def stop(self) -> None:
        """Make `serve` return; safe in a signal handler."""
        self._server.stop()

    def _vital(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001  it ends the enclave, which its supervisor starts anew
            # The class only: an exception's text may quote what it failed on.
            logger.error("thread %s died: %s", threading.current_thread().name, type(error).__name__)
            self._is_broken = True
            self.stop()

    def _keep_house(self) -> None:
        while not self._stopping.wait(TICK_S):
            self._server.cut_overdue()
            self._data_keys.sweep()


def build(nsm: Nsm, dial: Dial, ca_file: str, *, limits: Limits | None = None) -> Enclave:
    """Put an enclave together.

    Args:
        nsm: signs attestation documents.
        dial: opens a stream towards a KMS host; TLS, with the host's name, happens above it.
        ca_file: PEM roots that may vouch for KMS.
        limits: of connections; None for the usual ones.

    Raises:
        NsmError: no first attestation document could be made.
    """
    return Enclave(nsm, dial, ca_file, limits=limits)


def main(argv: Sequence[str] | None = None) -> None:
    """Serve on AF_VSOCK inside an enclave until SIGTERM.

    Args:
        argv: from the kernel's command line by way of enclave/init.py, so the image's measurement covers them.
    """
    options = _parser().parse_args(argv)
    harden()
    nsm = NsmDevice()
    _seed_kernel(nsm)
    limits = Limits(write_bytes=options.write_bytes)
    enclave = build(nsm, partial(_dial_proxy, options.parent_cid), str(CA_FILE), limits=limits)

    def stop(_signum: int, _frame: FrameType | None) -> None:
        enclave.stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    enclave.serve(listen(VsockAddress(socket.VMADDR_CID_ANY, PORT), backlog=MAX_CONNECTIONS))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="enclave_app", description="the enclave's application", allow_abbrev=False)
    parser.add_argument("--parent-cid", type=int, default=PARENT_CID, help="CID of the parent (default: %(default)s)")
    parser.add_argument(
        "--write-bytes", type=int, default=SLICE_BYTES, help="longest single write to a vsock (default: %(default)s)"
    )
    return parser


def _dial_proxy(parent_cid: int, host: str, timeout_s: float) -> socket.socket:
    # The parent's vsock-proxy moves bytes to `host`; it sees TLS, and may cut, delay or misdirect it, no more.
    return connect(VsockAddress(parent_cid, proxy_port(host)), timeout_s=timeout_s)


def _seed_kernel(nsm: Nsm) -> None:
    # An enclave has few sources of its own. Mixing in costs nothing where the kernel's nsm-hwrng did it already.
    Path("/dev/urandom").write_bytes(nsm.random(_ENTROPY_BYTES))


if __name__ == "__main__":
    main()
