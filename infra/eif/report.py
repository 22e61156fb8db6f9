"""What `python -m infra.eif describe` prints of an image: for a person, or as `nitro-cli describe-eif` prints it.

Called by `infra.eif.__main__`. May import: the standard library, cryptography, infra.eif.
"""

from __future__ import annotations

import json
from typing import Any

from cryptography.hazmat.primitives import hashes

from infra.eif import measurement
from infra.eif.layout import VERSION, name_of
from infra.eif.reader import EnclaveImage

_NAMES = {0: "whole image", 1: "kernel and boot", 2: "application", 8: "signing certificate"}


def to_json(image: EnclaveImage) -> dict[str, Any]:
    """Return the image's description; the members that `nitro-cli describe-eif` has too are named as there.

    A file whose CRC or signature is wrong was refused before, so both checks are true in every description.
    """
    return {
        "EifVersion": VERSION,
        "Architecture": _architecture(image),
        "Measurements": measurement.to_json(image.pcrs),
        "IsSigned": image.signer is not None,
        "SigningCertificate": _signer(image),
        "CheckCRC": True,
        "Crc": f"{image.header.crc:08x}",
        "Bytes": image.file_bytes,
        "DefaultMemoryBytes": image.header.default_memory_bytes,
        "DefaultCpus": image.header.default_cpus,
        "CommandLine": image.command_line,
        "Sections": [
            {"Type": name_of(span.type), "Offset": span.offset, "Bytes": span.size} for span in image.sections
        ],
        "Metadata": image.metadata,
    }


def to_text(image: EnclaveImage) -> str:
    """Return the same for a person, in lines."""
    named = {name: image.metadata[name] for name in ("ImageName", "ImageVersion") if name in image.metadata}
    lines = [
        f"{image.path}: enclave image, version {VERSION}, {_architecture(image)}, {image.file_bytes:,} bytes",
        f"CRC {image.header.crc:08x}, intact",
        "",
        *(f"{name_of(span.type):<13} {span.size:>13,} bytes at {span.offset:,}" for span in image.sections),
        "",
        f"command line  {image.command_line}",
        *(f"{name:<13} {_shown(value)}" for name, value in named.items()),
        "",
        *(f"PCR{index}  {image.pcrs[index].hex()}  {_NAMES[index]}" for index in sorted(image.pcrs)),
        "",
    ]
    signer = _signer(image)
    lines.append(
        "not signed" if signer is None else f"signed by {_shown(signer['Subject'])}, sha-256 {signer['Sha256']}"
    )
    return "\n".join(lines)


def _shown(value: Any) -> str:
    # The file's author chose it: escaped, so that it cannot write to the reader's terminal.
    return json.dumps(str(value))[1:-1]


def _architecture(image: EnclaveImage) -> str:
    return "aarch64" if image.header.is_arm64 else "x86_64"


def _signer(image: EnclaveImage) -> dict[str, str] | None:
    if image.signer is None:
        return None
    return {
        "Subject": image.signer.subject.rfc4514_string(),
        "NotBefore": image.signer.not_valid_before_utc.isoformat(),
        "NotAfter": image.signer.not_valid_after_utc.isoformat(),
        "Sha256": image.signer.fingerprint(hashes.SHA256()).hex(),
    }
