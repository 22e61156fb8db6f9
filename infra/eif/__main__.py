"""The command `python -m infra.eif`: describe enclave images.

May import: the standard library, mrgc.errors, infra.eif.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from infra.eif import reader, report
from mrgc.errors import FormatError, MrgcError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0, 1 for a file that is refused, 2 for a wrong call."""
    options = _parser().parse_args(argv)
    try:
        return int(options.run(options))
    except MrgcError as error:
        print(f"infra.eif: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m infra.eif", description="enclave images without Docker")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    describe = commands.add_parser(
        "describe",
        help="read an image: sections, metadata, CRC, PCRs, signature",
        description="Reads an enclave image file and prints what it holds and how it measures. "
        "A malformed or damaged file, or one whose signature does not verify, is refused: exit code 1.",
    )
    describe.add_argument("file", type=Path, metavar="FILE", help="an enclave image (.eif)")
    describe.add_argument("--json", action="store_true", help="print one JSON object, as nitro-cli describe-eif does")
    describe.set_defaults(run=_describe)
    return parser


def _describe(options: argparse.Namespace) -> int:
    try:
        image = reader.read(options.file)
    except FormatError as error:
        print(f"infra.eif: {options.file}: {error}", file=sys.stderr)
        return 1
    print(json.dumps(report.to_json(image), indent=2) if options.json else report.to_text(image))
    return 0


if __name__ == "__main__":
    sys.exit(main())
