"""The JSON protocol: one request, one answer, beside the binary one and through the same checks (docs/spec.md §8).

It serves trust tier 0 only. A sealed job is opened and its result sealed exactly as `open_batch` and `seal_batch` do;
a bare ciphertext goes to KMS under a context that no data key has. Nothing is sealed that was not opened before.

Called by `enclave.operations`. May import: the standard library, enclave, mrgc.errors, mrgc.wire.
"""

from __future__ import annotations

import threading
import time
from typing import Final

from enclave import json_answers, json_requests
from enclave.access import Access, Peer
from enclave.attestation import Attestation
from enclave.bare_payloads import BarePayloads
from enclave.batches import Batches
from enclave.json_requests import DecryptRequest, EncryptRequest, HealthRequest, HelloRequest, JsonFrame
from enclave.key_cache import wipe
from enclave.kms_handler import KmsHandler
from enclave.pending import OpenedJob, OpenedPayload, Origin, PendingRequests
from mrgc.errors import FormatError, TokenError
from mrgc.wire import strict_json
from mrgc.wire.enclave_protocol import SealRequest
from mrgc.wire.headers import JSON_PROTOCOL_MODEL, JSON_TYPE, OCTET_STREAM_TYPE
from mrgc.wire.sealed import MAGIC

#: Values in a result that is looked at as JSON, 60 MiB of objects at most; with more of them it is an octet stream.
MAX_RESULT_VALUES: Final = 1 << 18


class JsonProtocol:
    """Performs the requests of the JSON protocol.

    Args:
        access: who may ask.
        batches: opens sealed jobs and seals their results.
        bare: decrypts bare ciphertexts and seals what answers them.
        attestation: for health.
        kms: for health.
    """

    def __init__(
        self, access: Access, batches: Batches, bare: BarePayloads, *, attestation: Attestation, kms: KmsHandler
    ) -> None:
        self._access = access
        self._batches = batches
        self._bare = bare
        self._attestation = attestation
        self._kms = kms
        self._lock = threading.Lock()
        self._pending = PendingRequests()
        self._parsing = threading.Lock()

    def perform(self, frame: JsonFrame, peer: Peer) -> bytearray:
        """Perform one request.

        Returns:
            The whole response frame, to be zeroed after it was sent.

        Raises:
            MrgcError: what the request is answered with.
        """
        request = json_requests.parse(frame)
        if isinstance(request, HelloRequest):
            self._access.present(request.token, peer)
            return json_answers.hello_answer()
        if not self._access.serves_json(peer):
            raise TokenError("the json protocol needs a hello")
        if isinstance(request, HealthRequest):
            return json_answers.health_answer(
                attestation_ready=self._attestation.is_ready, kms_ready=self._kms.is_ready
            )
        if isinstance(request, DecryptRequest):
            return self._decrypt(request)
        return self._encrypt(request)

    def _decrypt(self, request: DecryptRequest) -> bytearray:
        with self._lock:
            self._pending.reserve(request.request_id, request.tenant, now_s=time.monotonic())
        try:
            plaintext, origin = self._open(request)
        except BaseException:
            with self._lock:
                self._pending.release(request.request_id)
            raise
        with self._lock:
            self._pending.fill(request.request_id, origin)
        try:
            return json_answers.decrypt_answer(request.request_id, plaintext)
        finally:
            wipe(plaintext)

    def _open(self, request: DecryptRequest) -> tuple[bytearray, Origin]:
        if not request.payload.startswith(MAGIC):
            plaintext = self._bare.decrypt(request.payload, tenant=request.tenant, key_arn=request.key_arn)
            return plaintext, OpenedPayload(request.key_arn, request.tenant)
        opened = self._batches.open_job(request.payload, tenant=request.tenant, key_arn=request.key_arn)
        return opened.plaintext, OpenedJob(request.key_arn, opened.job.request, opened.ticket, opened.job.aad)

    def _encrypt(self, request: EncryptRequest) -> bytearray:
        try:
            with self._lock:
                origin = self._pending.take(request.request_id, request.key_arn, now_s=time.monotonic())
            return json_answers.encrypt_answer(request.request_id, self._seal(request, origin))
        finally:
            wipe(request.body)

    def _seal(self, request: EncryptRequest, origin: Origin) -> bytes:
        if isinstance(origin, OpenedPayload):
            return self._bare.seal(request.body, origin, request_id=request.request_id)
        return self._batches.seal_result(
            SealRequest(
                request=origin.request,
                ticket=origin.ticket,
                status="ok",
                model=JSON_PROTOCOL_MODEL,
                type=JSON_TYPE if self._is_json(request.body) else OCTET_STREAM_TYPE,
                aad=origin.aad,
                body=request.body,
            )
        )

    def _is_json(self, body: bytearray) -> bool:
        # One at a time: what a parse allocates is then bounded for the enclave, not for each connection.
        with self._parsing:
            try:
                strict_json.parse(body, max_values=MAX_RESULT_VALUES)
            except FormatError:
                return False
            return True
