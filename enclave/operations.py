"""The operations of the enclave socket, and who may ask for which (docs/spec.md §6).

One method for each op: it parses its request, does the work, builds its response. Frames, deadlines and memory are the
connection's business; nothing here reads or writes a socket.

Called by `enclave.connection`. May import: the standard library, enclave, mrgc.errors, mrgc.wire.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from enclave.access import Access, Peer
from enclave.attestation import Attestation
from enclave.bare_payloads import BarePayloads
from enclave.batches import Batches
from enclave.counters import Counters
from enclave.credentials import CredentialStore
from enclave.data_keys import DataKeys
from enclave.json_protocol import JsonProtocol
from enclave.json_requests import JsonFrame
from enclave.kms_calls import KmsCalls
from enclave.kms_handler import KmsHandler
from mrgc.errors import TokenError, UnsupportedError
from mrgc.wire import enclave_protocol
from mrgc.wire.enclave_protocol import Health, Op
from mrgc.wire.frames import Frame
from mrgc.wire.strict_cbor import Buffer

#: Counters that are reported from the start, so that a rate can be computed from the first event on.
_ALWAYS_REPORTED: Final = (
    "attestation_failures",
    "attestation_ms_total",
    "attestations",
    "connections",
    "frames_bytes",
    "jobs_opened",
    "json_requests",
    "key_cache_hits",
    "key_cache_misses",
    "kms_calls",
    "kms_failures",
    "kms_ms_total",
    "open_batches",
    "results_sealed",
    "seal_batches",
)
_BEFORE_FIRST_HELLO: Final = frozenset({Op.HELLO, Op.ATTEST, Op.HEALTH})
_WITHOUT_TOKEN: Final = frozenset({Op.HELLO, Op.HEALTH})


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of an enclave that its operations speak to."""

    attestation: Attestation
    credentials: CredentialStore
    kms: KmsHandler
    kms_calls: KmsCalls
    data_keys: DataKeys
    counters: Counters


class Operations:
    """Performs requests.

    Args:
        parts: what the operations work with.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._boot = os.urandom(8).hex()
        self._started_s = time.monotonic()
        self._access = Access()
        clock = parts.attestation.clock
        batches = Batches(parts.data_keys, clock, parts.counters)
        bare = BarePayloads(parts.kms, parts.kms_calls, clock)
        self._json = JsonProtocol(self._access, batches, bare, attestation=parts.attestation, kms=parts.kms)
        self._operations: dict[str, Callable[[Frame], list[Buffer]]] = {
            Op.CREDENTIALS: self._take_credentials,
            Op.ATTEST: self._attest,
            Op.OPEN_BATCH: batches.open,
            Op.SEAL_BATCH: batches.seal,
            Op.HEALTH: self._health,
            Op.METRICS: self._metrics,
        }

    def perform(self, frame: Frame, peer: Peer) -> list[Buffer]:
        """Perform one request.

        Returns:
            The buffers of the response frame.

        Raises:
            TokenError: the op needs a hello first.
            UnsupportedError: no such op in this version.
            MrgcError: whatever else the op answers the whole request with.
        """
        if frame.op == Op.HELLO:
            return self._hello(frame, peer)
        self._ensure_allowed(frame.op, peer)
        operation = self._operations.get(frame.op)
        if operation is None:
            raise UnsupportedError("no such operation")
        return operation(frame)

    def perform_json(self, frame: JsonFrame, peer: Peer) -> list[Buffer]:
        """Perform one request of the JSON protocol.

        Returns:
            The buffers of the response frame.

        Raises:
            MrgcError: what the request is answered with.
        """
        self._parts.counters.add(json_requests=1)
        return [self._json.perform(frame, peer)]

    def serves_json(self, peer: Peer) -> bool:
        """Tell whether `peer` may use the JSON protocol."""
        return self._access.serves_json(peer)

    def _ensure_allowed(self, op: str, peer: Peer) -> None:
        if peer.has_token:
            return
        if op not in (_WITHOUT_TOKEN if self._access.is_locked else _BEFORE_FIRST_HELLO):
            raise TokenError("operation needs a hello")

    def _hello(self, frame: Frame, peer: Peer) -> list[Buffer]:
        self._access.hello(enclave_protocol.parse_hello(frame), peer)
        return enclave_protocol.done_response(Op.HELLO, frame.id)

    def _take_credentials(self, frame: Frame) -> list[Buffer]:
        self._parts.credentials.put(enclave_protocol.parse_credentials(frame))
        return enclave_protocol.done_response(Op.CREDENTIALS, frame.id)

    def _attest(self, frame: Frame) -> list[Buffer]:
        request = enclave_protocol.parse_attest(frame)
        return enclave_protocol.document_response(frame.id, self._parts.attestation.statement(request))

    def _health(self, frame: Frame) -> list[Buffer]:
        health = Health(
            boot=self._boot,
            hello=self._access.is_locked,
            attestation_ready=self._parts.attestation.is_ready,
            kms_ready=self._parts.kms.is_ready,
            connections=self._parts.counters.snapshot().get("connections", 0),
            uptime_s=int(time.monotonic() - self._started_s),
        )
        return enclave_protocol.health_response(frame.id, health)

    def _metrics(self, frame: Frame) -> list[Buffer]:
        counters = dict.fromkeys(_ALWAYS_REPORTED, 0) | self._parts.counters.snapshot()
        counters["key_cache_entries"] = self._parts.data_keys.entries()
        return enclave_protocol.metrics_response(frame.id, counters)
