"""The NSM's commands, request in, response out: what a guest's /dev/nsm answers when the software NSM stands behind it.

Encodings are those of aws-nitro-enclaves-nsm-api (src/api/mod.rs, externally tagged serde). Registers 0 to 15 are
locked from boot, 16 to 31 are the guest's to extend and lock; a document lists those that are locked. Called by
`infra.vhost_nsm`. May import: the standard library, cbor2, infra.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from typing import Any, Final

import cbor2

from enclave.nsm import MAX_FIELD_BYTES, MAX_RANDOM_BYTES
from infra.local_nsm import PCR_COUNT, LocalNsm

MAX_PCRS: Final = 32
MAX_REQUEST_BYTES: Final = 0x1000  #: Linux drivers/misc/nsm.c; its ioctl refuses longer ones itself.
_PCR_BYTES: Final = 48
_FIELDS: Final = ("user_data", "nonce", "public_key")


class _Refused(Exception):
    """Raised with the name of the NSM's error."""


class NsmCommands:
    """One boot of an NSM: signs with `nsm`, and keeps the guest's own registers.

    Not safe for concurrent use; a device has one request in flight.
    """

    def __init__(self, nsm: LocalNsm) -> None:
        self._nsm = nsm
        self._registers = nsm.pcrs | {index: bytes(_PCR_BYTES) for index in range(PCR_COUNT, MAX_PCRS)}
        self._locked = set(range(PCR_COUNT))
        self._commands: dict[str, Callable[[dict[str, Any]], Any]] = {
            "Attestation": self._attestation,
            "DescribeNSM": self._describe_nsm,
            "DescribePCR": self._describe_pcr,
            "ExtendPCR": self._extend_pcr,
            "GetRandom": self._get_random,
            "LockPCR": self._lock_pcr,
            "LockPCRs": self._lock_pcrs,
        }

    def answer(self, request: bytes) -> bytes:
        """Carry out one request; a wrong one is answered with the NSM's error, never raised."""
        try:
            name, arguments = _parse(request)
            answer = self._commands[name](arguments)
        except _Refused as refusal:
            return cbor2.dumps({"Error": str(refusal)})
        return cbor2.dumps(name if answer is None else {name: answer})

    def _attestation(self, arguments: dict[str, Any]) -> dict[str, bytes]:
        fields = {name: arguments.get(name) for name in _FIELDS}
        for value in fields.values():
            if value is not None and type(value) is not bytes:
                raise _Refused("InvalidArgument")
            if value is not None and len(value) > MAX_FIELD_BYTES:
                raise _Refused("InputTooLarge")
        pcrs = {index: self._registers[index] for index in sorted(self._locked)}
        return {"document": self._nsm.document(pcrs, fields)}

    def _describe_nsm(self, _arguments: dict[str, Any]) -> dict[str, Any]:
        return {
            "version_major": 1,
            "version_minor": 0,
            "version_patch": 0,
            "module_id": self._nsm.module_id,
            "max_pcrs": MAX_PCRS,
            "locked_pcrs": sorted(self._locked),
            "digest": "SHA384",
        }

    def _describe_pcr(self, arguments: dict[str, Any]) -> dict[str, Any]:
        index = _index(arguments)
        return {"lock": index in self._locked, "data": self._registers[index]}

    def _extend_pcr(self, arguments: dict[str, Any]) -> dict[str, bytes]:
        index, data = self._open_register(arguments), arguments.get("data")
        if type(data) is not bytes:
            raise _Refused("InvalidArgument")
        self._registers[index] = hashlib.sha384(self._registers[index] + data).digest()
        return {"data": self._registers[index]}

    def _get_random(self, _arguments: dict[str, Any]) -> dict[str, bytes]:
        # Linux' driver compares the response's head with that of exactly this many bytes.
        return {"random": os.urandom(MAX_RANDOM_BYTES)}

    def _lock_pcr(self, arguments: dict[str, Any]) -> None:
        self._locked.add(self._open_register(arguments))

    def _lock_pcrs(self, arguments: dict[str, Any]) -> None:
        end = arguments.get("range")
        if type(end) is not int or not 0 <= end <= MAX_PCRS:
            raise _Refused("InvalidIndex")
        self._locked.update(range(end))

    def _open_register(self, arguments: dict[str, Any]) -> int:
        index = _index(arguments)
        if index in self._locked:
            raise _Refused("ReadOnlyIndex")
        return index


def _parse(request: bytes) -> tuple[str, dict[str, Any]]:
    if len(request) > MAX_REQUEST_BYTES:
        raise _Refused("InputTooLarge")
    try:
        parsed = cbor2.loads(request)
    except (cbor2.CBORError, ValueError, TypeError, RecursionError):
        raise _Refused("InvalidOperation") from None
    # A command without arguments is its bare name, one with arguments a map of one entry.
    if parsed in ("DescribeNSM", "GetRandom"):
        return parsed, {}
    known = ("Attestation", "DescribePCR", "ExtendPCR", "LockPCR", "LockPCRs")
    if type(parsed) is not dict or len(parsed) != 1 or (name := next(iter(parsed))) not in known:
        raise _Refused("InvalidOperation")
    if type(parsed[name]) is not dict:
        raise _Refused("InvalidArgument")
    return name, parsed[name]


def _index(arguments: dict[str, Any]) -> int:
    index = arguments.get("index")
    if type(index) is not int:
        raise _Refused("InvalidArgument")
    if not 0 <= index < MAX_PCRS:
        raise _Refused("InvalidIndex")
    return index
