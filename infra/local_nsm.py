"""A software NSM for the one-machine stack and the tests: attestation documents under a throw-away root.

The documents have the form of genuine ones (docs/spec.md §6, §7) and fail in production for one reason only: their
root is not the pinned AWS root. Called by `infra.local_enclave`, `infra.nsm_commands`, `infra.vm` and tests. May
import: the standard library, cbor2, cryptography, enclave.nsm, infra. Never copied into the enclave image.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, cast

import cbor2
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from enclave.nsm import MAX_FIELD_BYTES, NsmError
from infra.durable_file import replace_file
from infra.eif.measurement import PCR_BYTES, extend_zero
from infra.nsm_chain import Issuer, SignerChain, make_root

#: PCRs 0–15 are locked from boot and therefore in every document; AWS: nsm-api, docs/attestation_process.md.
PCR_COUNT: Final = 16
NO_REGION: Final = "one-machine"  #: Stands in certificates where genuine ones have an AWS region.

_PROTECTED: Final = bytes.fromhex("a1013822")  # {1: -35}, ES384
_COORDINATE_BYTES: Final = 48
_SIGNER_FILE: Final = "nsm.json"


def create_pki(directory: Path, *, module_id: str | None = None) -> None:
    """Make a root and write what `LocalNsm` needs: `root.pem` for verifiers, `nsm.json` (0600) for the signer.

    Args:
        directory: created if absent; must not hold a `root.pem` yet.
        module_id: `i-<instance>-enc<enclave>`; random when None.

    Raises:
        FileExistsError: the directory already holds a root.
    """
    directory.mkdir(parents=True, exist_ok=True)
    root_file = directory / "root.pem"
    if root_file.exists():
        raise FileExistsError(root_file)
    root = make_root(time.time())
    key_pem = root.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    root_pem = root.certificate.public_bytes(Encoding.PEM)
    name = module_id or f"i-{secrets.token_hex(9)[:17]}-enc{secrets.token_hex(8)}"
    signer = {"module_id": name, "root": root_pem.decode(), "key": key_pem.decode()}
    replace_file(directory / _SIGNER_FILE, json.dumps(signer).encode())
    replace_file(root_file, root_pem, mode=0o644)


class LocalNsm:
    """An NSM in software; implements `enclave.nsm.Nsm`. Safe for concurrent use."""

    def __init__(
        self,
        directory: Path,
        pcrs: Mapping[int, bytes],
        *,
        region: str = NO_REGION,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Load the signer of `create_pki` and fix the measurements.

        Args:
            directory: where `create_pki` wrote.
            pcrs: index → 48 bytes. The others are zero, except PCR4, which is the instance's unless given.
            region: of the instance, as its certificates name it.
            clock: unix seconds; decides document timestamps and when certificates are reissued.
        """
        signer = json.loads((directory / _SIGNER_FILE).read_text())
        root = Issuer(
            x509.load_pem_x509_certificate(signer["root"].encode()),
            cast(ec.EllipticCurvePrivateKey, load_pem_private_key(signer["key"].encode(), None)),
        )
        self._module_id: str = signer["module_id"]
        self._chain = SignerChain(root, self._module_id, region)
        self._pcrs = _registers(pcrs, self._module_id)
        self._clock = clock
        self._lock = threading.Lock()

    def attest(self, *, public_key: bytes | None, user_data: bytes | None, nonce: bytes | None) -> bytes:
        """Sign an attestation document over the three caller-chosen fields.

        Returns:
            An untagged COSE_Sign1 (RFC 9052 §4.2), ES384, of the form that the Nitro hypervisor makes.

        Raises:
            NsmError: a field is longer than the NSM signs.
        """
        return self.document(self._pcrs, {"public_key": public_key, "user_data": user_data, "nonce": nonce})

    @property
    def module_id(self) -> str:
        """Name of the module, as documents carry it."""
        return self._module_id

    @property
    def pcrs(self) -> dict[int, bytes]:
        """The registers that are fixed from boot."""
        return dict(self._pcrs)

    def document(self, pcrs: Mapping[int, bytes], fields: Mapping[str, bytes | None]) -> bytes:
        """Sign a document over any registers: an NSM device has some that its guest extends.

        Args:
            pcrs: index → 48 bytes.
            fields: public_key, user_data and nonce.

        Raises:
            NsmError: a field is longer than the NSM signs.
        """
        for name, value in fields.items():
            if value is not None and len(value) > MAX_FIELD_BYTES:
                raise NsmError(f"{name} is longer than {MAX_FIELD_BYTES} bytes")
        with self._lock:
            now_s = self._clock()
            certificate, cabundle = self._chain.at(now_s)
            payload = {
                "module_id": self._module_id,
                "digest": "SHA384",
                "timestamp": int(now_s * 1000),
                "pcrs": dict(pcrs),
                "certificate": certificate,
                "cabundle": cabundle,
                **fields,
            }
            return sign1(cbor2.dumps(payload), self._chain.leaf_key)

    def random(self, n: int) -> bytes:
        """Return `n` random bytes."""
        return os.urandom(n)


def sign1(payload: bytes, key: ec.EllipticCurvePrivateKey) -> bytes:
    """Sign `payload` as an untagged COSE_Sign1 with ES384 (RFC 9052 §4.4, RFC 9053 §2.1)."""
    to_sign = cbor2.dumps(["Signature1", _PROTECTED, b"", payload])
    r, s = decode_dss_signature(key.sign(to_sign, ec.ECDSA(hashes.SHA384())))
    signature = r.to_bytes(_COORDINATE_BYTES, "big") + s.to_bytes(_COORDINATE_BYTES, "big")
    return cbor2.dumps([_PROTECTED, {}, payload, signature])


def measure(paths: Iterable[Path]) -> dict[int, bytes]:
    """Return PCR0, PCR1 and PCR2 of an enclave that runs these files with this Python.

    The rule is the EIF's, PCR = SHA-384(48 zero bytes ‖ SHA-384(content)), with the interpreter in the place of
    kernel and boot ramdisk (PCR1), the files in the place of the application (PCR2), and both in PCR0.

    Args:
        paths: files, or directories taken whole without byte-code caches. A file counts with its name below the
            given path, so the same tree measures the same wherever it lies.
    """
    boot = hashlib.sha384()
    application = hashlib.sha384()
    whole = hashlib.sha384()
    interpreter = Path(sys.executable).resolve().read_bytes()
    for digest in (boot, whole):
        digest.update(interpreter)
    for name, content in _files(paths):
        for digest in (application, whole):
            digest.update(len(name).to_bytes(4, "big") + name + len(content).to_bytes(8, "big") + content)
    return {index: extend_zero(digest.digest()) for index, digest in enumerate((whole, boot, application))}


def _registers(pcrs: Mapping[int, bytes], module_id: str) -> dict[int, bytes]:
    instance = module_id.partition("-enc")[0]
    registers = dict.fromkeys(range(PCR_COUNT), bytes(PCR_BYTES)) | {4: extend_zero(instance.encode())} | dict(pcrs)
    for index, value in registers.items():
        if not 0 <= index < PCR_COUNT or len(value) != PCR_BYTES:
            raise ValueError(f"PCR{index} is not one of {PCR_COUNT} registers of {PCR_BYTES} bytes")
    return registers


def _files(paths: Iterable[Path]) -> Iterator[tuple[bytes, bytes]]:
    found: dict[str, Path] = {}
    for path in paths:
        members: Any = [path] if path.is_file() else (p for p in path.rglob("*") if p.is_file())
        for file in members:
            if "__pycache__" not in file.parts:
                found[file.relative_to(path.parent).as_posix()] = file
    for name in sorted(found):
        yield name.encode(), found[name].read_bytes()
