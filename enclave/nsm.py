"""The Nitro Security Module: its three-field attestation request and its random bytes, by ioctl.

The request and response encodings are those of aws-nitro-enclaves-nsm-api (src/api/mod.rs, externally tagged serde);
the transport is the one ioctl of Linux drivers/misc/nsm.c. Nothing here interprets an attestation document.

Called by `enclave.attestation` and `enclave.enclave_app`. May import: the standard library, cbor2, mrgc.errors.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import threading
from typing import Any, Final, Protocol

import cbor2

from mrgc.errors import EnclaveError

NSM_DEVICE: Final = "/dev/nsm"
MAX_FIELD_BYTES: Final = 1_024  #: Longest public_key, user_data or nonce that the NSM signs.
MAX_RANDOM_BYTES: Final = 256  #: Most that one GetRandom answers.

_IOCTL: Final = 0xC0200A00  # _IOWR(0x0A, 0, struct nsm_raw), include/uapi/linux/nsm.h
_RAW: Final = struct.Struct("@QQQQ")  # struct nsm_raw: request {address, length}, response {address, length}
_MAX_REQUEST_BYTES: Final = 0x1000  # drivers/misc/nsm.c answers EMSGSIZE above
_RESPONSE_BYTES: Final = 0x3000  # drivers/misc/nsm.c, NSM_RESPONSE_MAX_SIZE


class NsmError(EnclaveError):
    """Raised when the NSM refuses a request, answers another shape, or cannot be reached."""

    code = "nsm"


class Nsm(Protocol):
    """What the enclave needs of an NSM; `infra.local_nsm` has another one, signing under another root."""

    def attest(self, *, public_key: bytes | None, user_data: bytes | None, nonce: bytes | None) -> bytes:
        """Return an attestation document (COSE_Sign1) over the given fields.

        Raises:
            NsmError: no document was made.
        """
        ...

    def random(self, n: int) -> bytes:
        """Return `n` bytes of the NSM's random generator.

        Raises:
            NsmError: no bytes were given.
        """
        ...


class NsmDevice:
    """The NSM of the enclave that this process runs in.

    Args:
        path: the character device; mode 0666 in an enclave, so no privilege is needed.

    Raises:
        NsmError: there is no such device: not an enclave.
    """

    def __init__(self, path: str = NSM_DEVICE) -> None:
        try:
            # Unbuffered: the driver has no llseek, which Python's buffered read-write files demand.
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise NsmError("nsm device cannot be opened") from error
        # The driver holds one mutex over every request, so waiting here costs nothing and bounds its queue.
        self._lock = threading.Lock()

    def attest(self, *, public_key: bytes | None, user_data: bytes | None, nonce: bytes | None) -> bytes:
        """Return an attestation document (COSE_Sign1) over the given fields, each at most 1,024 bytes.

        Raises:
            NsmError: the NSM refused, or the device failed.
        """
        request = encode_attestation(public_key=public_key, user_data=user_data, nonce=nonce)
        return answer_field(self._exchange(request), "Attestation", "document")

    def random(self, n: int) -> bytes:
        """Return `n` random bytes, at most 256 a request.

        Raises:
            NsmError: the NSM refused, or the device failed.
        """
        gathered = b""
        while len(gathered) < n:
            gathered += answer_field(self._exchange(cbor2.dumps("GetRandom")), "GetRandom", "random")
        return gathered[:n]

    def _exchange(self, request: bytes) -> bytes:
        if len(request) > _MAX_REQUEST_BYTES:
            raise NsmError("nsm request is over 4,096 bytes")
        # Both buffers are named until after the call: the kernel holds their addresses only.
        outgoing = ctypes.create_string_buffer(request, len(request))
        incoming = ctypes.create_string_buffer(_RESPONSE_BYTES)
        raw = bytearray(
            _RAW.pack(ctypes.addressof(outgoing), len(request), ctypes.addressof(incoming), _RESPONSE_BYTES)
        )
        try:
            with self._lock:
                fcntl.ioctl(self._fd, _IOCTL, raw, True)
        except OSError as error:
            raise NsmError("nsm request failed") from error
        # The driver writes the real length back, and truncates silently to ours.
        length = _RAW.unpack(raw)[3]
        if not 0 < length <= _RESPONSE_BYTES:
            raise NsmError("nsm response has an impossible length")
        return incoming.raw[:length]


def encode_attestation(*, public_key: bytes | None, user_data: bytes | None, nonce: bytes | None) -> bytes:
    """Encode an Attestation request.

    Raises:
        NsmError: a field is over 1,024 bytes.
    """
    fields = {"user_data": user_data, "nonce": nonce, "public_key": public_key}
    if any(value is not None and len(value) > MAX_FIELD_BYTES for value in fields.values()):
        raise NsmError("nsm request field is over 1,024 bytes")
    return cbor2.dumps({"Attestation": fields})


def answer_field(response: bytes, request: str, field: str) -> bytes:
    """Take the one byte string out of an NSM response `{request: {field: bytes}}`.

    Raises:
        NsmError: the NSM answered an error, or another shape.
    """
    try:
        answer: Any = cbor2.loads(response)
    except (cbor2.CBORError, ValueError) as error:
        raise NsmError("nsm response is not cbor") from error
    refusal = answer.get("Error") if isinstance(answer, dict) else None
    if isinstance(refusal, str):
        raise NsmError(f"nsm refused the request: {refusal[:32]}")
    fields = answer.get(request) if isinstance(answer, dict) else None
    value = fields.get(field) if isinstance(fields, dict) else None
    if not isinstance(value, bytes) or not value:
        raise NsmError("nsm response has another shape")
    return value
