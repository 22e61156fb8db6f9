"""`mrgc verify`: judge one attestation document, as whoever relies on an enclave would.

Called by `mrgc.cli`, which registers it. May import: typer, mrgc.attest, mrgc.errors, mrgc.measurements,
mrgc.verify_report, mrgc.cli_files, mrgc.cli_lines, mrgc.cli_report. What reads certificates is imported when the
command runs: it takes a third of the time of `mrgc --help`. It asks nobody: the document is all it sees.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from mrgc.attest.cose import MAX_DOCUMENT_BYTES
from mrgc.attest.document import MAX_FIELD_BYTES, MAX_PCRS, Kind
from mrgc.cli_files import open_input
from mrgc.cli_lines import print_line
from mrgc.cli_report import print_error
from mrgc.errors import AttestationError, ConfigError, InputFileError
from mrgc.measurements import parse_pcr

if TYPE_CHECKING:
    from mrgc.attest.chain import Root

#: Age up to which a document counts as live; KMS itself accepts five minutes.
LIVE_S: Final = 300.0

_NOW: Final = "now"
_DOCUMENT: Final = "document"
_MAX_ROOT_BYTES: Final = 65_536
_NONCE: Final = re.compile(rf"([0-9A-Fa-f]{{2}}){{1,{MAX_FIELD_BYTES}}}")
_PCR: Final = re.compile(r"(?:PCR)?(0|[1-9][0-9]?)=(.*)", re.DOTALL)


class VerifyExit(IntEnum):
    """Exit codes of `mrgc verify`."""

    ACCEPTED = 0
    USAGE = 2
    REFUSED = 3


EPILOG: Final = "\n".join(
    (
        "\b",
        "Exit codes:",
        f"{VerifyExit.ACCEPTED.value:4}  the document is accepted",
        f"{VerifyExit.USAGE.value:4}  wrong usage, or a file that cannot be read",
        f"{VerifyExit.REFUSED.value:4}  refused; the class of refusal is printed",
    )
)


def verify(  # noqa: PLR0913 - typer takes one parameter per option
    file: Annotated[str, typer.Argument(metavar="FILE|-", help="the document as the NSM returned it; - is stdin")],
    *,
    kind: Annotated[Kind, typer.Option(help="what must attest")] = Kind.ENCLAVE,
    root: Annotated[Path | None, typer.Option(metavar="PEM", help="trust anchor in place of AWS's root")] = None,
    at: Annotated[str, typer.Option(metavar="now|document|ISO-8601", help="time of judgement")] = _NOW,
    pcr: Annotated[
        list[str] | None, typer.Option(metavar="N=HEX", help="value that a PCR must have; may be given again")
    ] = None,
    nonce: Annotated[str | None, typer.Option(metavar="HEX", help="your own nonce, which must be in it")] = None,
    allow_debug: Annotated[bool, typer.Option("--allow-debug", help="accept an enclave in debug mode")] = False,
    json_line: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Verify an attestation document: structure, certificate chain, signature, then what you demand of it.

    A genuine document proves that some enclave made it. Only --pcr 0=HEX says which image, and only --nonce that it is
    an answer to you.

    --at now demands that the document is at most 300 s old. --at document judges an archived record at its own time,
    which its signature covers; a date and time with zone judges it at that moment; neither limits its age.
    """
    from mrgc.attest.verify import (  # noqa: PLC0415 - see the module's docstring
        Policy,
        claimed_time,
        verify_enclave_document,
        verify_nitrotpm_document,
    )
    from mrgc.verify_report import Accepted, as_fields, as_lines  # noqa: PLC0415

    anchor = _anchor(root)
    policy = Policy(
        pcrs=_pcrs(pcr or ()),
        nonce=_nonce(nonce),
        max_age_s=LIVE_S if at == _NOW else None,
        allow_debug=allow_debug,
    )
    named = _named_time(at)
    data = _read(file)
    try:
        judged_at = named or (datetime.now(UTC) if at == _NOW else claimed_time(data, kind=kind))
        check = verify_enclave_document if kind is Kind.ENCLAVE else verify_nitrotpm_document
        verified = check(data, root=anchor, at=judged_at, policy=policy)
    except AttestationError as error:
        _refuse(error, kind, json_line=json_line)
        raise typer.Exit(VerifyExit.REFUSED) from error
    accepted = Accepted(verified, anchor, judged_at, policy)
    print_line(json.dumps(as_fields(accepted)) if json_line else "\n".join(as_lines(accepted)))


def _refuse(error: AttestationError, kind: Kind, *, json_line: bool) -> None:
    name = type(error).__name__
    if json_line:
        fields = {"accepted": False, "kind": kind.value, "class": name, "error": error.code, "reason": str(error)}
        print_line(json.dumps(fields))
    else:
        print_line(f"refused: {name}")
    print_error(error)


def _read(file: str) -> bytes:
    """Read a document, and one byte more than any document has: that is enough to refuse it."""
    try:
        with open_input(file) as stream:
            return stream.read(MAX_DOCUMENT_BYTES + 1)
    except InputFileError as error:
        raise typer.BadParameter(str(error)) from error


def _anchor(root: Path | None) -> Root:
    from mrgc.attest.chain import aws_root, load_root  # noqa: PLC0415 - see the module's docstring

    if root is None:
        return aws_root()
    try:
        with root.open("rb") as stream:
            return load_root(stream.read(_MAX_ROOT_BYTES))
    except OSError as error:
        raise typer.BadParameter(f"{root}: {error.strerror}") from error
    except ConfigError as error:
        raise typer.BadParameter(f"{root}: {error}") from error


def _pcrs(arguments: Sequence[str]) -> dict[int, bytes]:
    pcrs: dict[int, bytes] = {}
    for argument in arguments:
        matched = _PCR.fullmatch(argument)
        index = int(matched[1]) if matched else MAX_PCRS
        if matched is None or index >= MAX_PCRS or index in pcrs:
            raise typer.BadParameter(f"--pcr is N=HEX, each N of 0 to {MAX_PCRS - 1} once")
        try:
            pcrs[index] = parse_pcr(matched[2])
        except ConfigError as error:
            raise typer.BadParameter(f"--pcr {index}: {error}") from error
    return pcrs


def _nonce(argument: str | None) -> bytes | None:
    # An empty argument is a shell variable that was not set, not a verifier without a nonce.
    if argument is not None and _NONCE.fullmatch(argument) is None:
        raise typer.BadParameter(f"--nonce is 1 to {MAX_FIELD_BYTES} bytes in hex")
    return None if argument is None else bytes.fromhex(argument)


def _named_time(at: str) -> datetime | None:
    """Return the moment that --at names, or None for the two words."""
    if at in {_NOW, _DOCUMENT}:
        return None
    try:
        moment = datetime.fromisoformat(at)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise typer.BadParameter("--at is now, document, or a date and time with zone, as 2026-11-22T18:00:00Z")
    return moment
