"""The command `python -m infra.eif`: build, describe, pcrs, rootfs, lock.

May import: the standard library, cryptography, mrgc.errors, mrgc.measurements, infra.eif.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from infra.eif import build, lock, measurement, reader, report, rootfs
from infra.eif.fetch import CACHE, PackageCache
from infra.eif.profiles import NITRO, VM
from infra.eif.signature import Signer
from mrgc.errors import ConfigError, FormatError, MrgcError
from mrgc.measurements import read_measurements


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
    _add_build(commands.add_parser("build", help="build the image from pinned packages and this source tree"))
    describe = commands.add_parser(
        "describe",
        help="read an image: sections, metadata, CRC, PCRs, signature",
        description="Reads an enclave image file and prints what it holds and how it measures. "
        "A malformed or damaged file, or one whose signature does not verify, is refused: exit code 1.",
    )
    describe.add_argument("file", type=Path, metavar="FILE", help="an enclave image (.eif)")
    describe.add_argument("--json", action="store_true", help="print one JSON object, as nitro-cli describe-eif does")
    describe.set_defaults(run=_describe)
    pcrs = commands.add_parser("pcrs", help="print an image's PCRs as pcr-values.json holds them")
    pcrs.add_argument("file", type=Path, metavar="FILE", help="an enclave image (.eif)")
    pcrs.add_argument("--equal", type=Path, metavar="JSON", help="refuse unless nitro-cli says the same here")
    pcrs.set_defaults(run=_pcrs)
    root = commands.add_parser("rootfs", help="write the application's files as a tar archive, for docker build")
    root.add_argument("file", type=Path, metavar="FILE")
    _add_sources(root)
    root.set_defaults(run=_rootfs)
    renew = commands.add_parser("lock", help="pin the newest packages; the image's PCR0 changes")
    _add_sources(renew)
    renew.set_defaults(run=_lock)
    return parser


def _add_build(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="where the three files go (default: .)")
    parser.add_argument(
        "--kernel",
        type=Path,
        metavar="FILE",
        help="AWS's bzImage instead of Debian's kernel; nsm.ko beside it",
    )
    parser.add_argument("--vm", action="store_true", help="for a virtual machine: parent CID 2, another PCR0")
    parser.add_argument(
        "--kms-roots",
        type=Path,
        metavar="PEM",
        help="with --vm: roots that may vouch for KMS instead of the own",
    )
    parser.add_argument("--sign-key", type=Path, metavar="PEM", help="sign the image with this EC key; adds PCR8")
    parser.add_argument("--sign-certificate", type=Path, metavar="PEM", help="the certificate of --sign-key")
    _add_sources(parser)
    parser.set_defaults(run=_build)


def _add_sources(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cache", type=Path, default=CACHE, metavar="DIR", help="fetched packages (default: .cache/eif)"
    )
    parser.add_argument(
        "--mirror", action="append", default=[], metavar="SUITE=URI", help="where a Debian suite is; may be repeated"
    )


def _build(options: argparse.Namespace) -> int:
    if options.kms_roots and not options.vm:
        raise ConfigError("--kms-roots goes with --vm only: a Nitro Enclave trusts the roots of the image")
    plan = build.Plan(
        profile=VM if options.vm else NITRO,
        kernel=options.kernel,
        kms_roots=options.kms_roots,
        signer=_signer(options.sign_key, options.sign_certificate),
    )
    output = build.build(plan, _cache(options), out=options.out)
    image = output["Image"]
    print(f"{options.out / image['File']}  {image['Bytes']:,} bytes, sha256 {image['Sha256']}")
    print(f"needs {image['MemoryMiB']} MiB and {image['Cpus']} CPUs; built for: {image['Profile']}")
    for name in sorted(name for name in output["Measurements"] if name.startswith("PCR")):
        print(f"{name}  {output['Measurements'][name]}")
    return 0


def _describe(options: argparse.Namespace) -> int:
    try:
        image = reader.read(options.file)
    except FormatError as error:
        print(f"infra.eif: {options.file}: {error}", file=sys.stderr)
        return 1
    print(json.dumps(report.to_json(image), indent=2) if options.json else report.to_text(image))
    return 0


def _pcrs(options: argparse.Namespace) -> int:
    measured = reader.read(options.file).pcrs
    if options.equal and (stated := read_measurements(options.equal)) != measured:
        different = sorted(index for index in measured.keys() | stated if measured.get(index) != stated.get(index))
        print(f"infra.eif: {options.file}: PCR {different} is not what {options.equal} says", file=sys.stderr)
        return 1
    print(json.dumps({"Measurements": measurement.to_json(measured)}, indent=1))
    return 0


def _rootfs(options: argparse.Namespace) -> int:
    options.file.write_bytes(rootfs.pack(build.application(_cache(options))))
    return 0


def _lock(options: argparse.Namespace) -> int:
    for pin in lock.renew(_cache(options)):
        print(f"{pin.name} {pin.version}")
    return 0


def _cache(options: argparse.Namespace) -> PackageCache:
    mirrors = dict(each.partition("=")[::2] for each in options.mirror)
    if not all(mirrors.values()):
        raise ConfigError("--mirror takes SUITE=URI, for example bookworm=https://…/debian/")
    return PackageCache(options.cache, mirrors=mirrors)


def _signer(key: Path | None, certificate: Path | None) -> Signer | None:
    if key is None and certificate is None:
        return None
    if key is None or certificate is None:
        raise ConfigError("--sign-key and --sign-certificate go together")
    try:
        private = load_pem_private_key(key.read_bytes(), None)
        named = x509.load_pem_x509_certificate(certificate.read_bytes())
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}") from error
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{key}, {certificate}: not an unencrypted PEM key and a PEM certificate") from error
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{key}: not an EC key; Nitro takes P-256, P-384 and P-521")
    return Signer(private, named)


if __name__ == "__main__":
    sys.exit(main())
