"""`mrgc policy`: write the key policy that admits one enclave image, and review the one that is in force.

Called by `mrgc.cli`, which registers it. May import: typer, mrgc.errors, mrgc.measurements, mrgc.policy,
mrgc.policy_review, mrgc.client_settings, mrgc.cli_lines; mrgc.tenant_kms, which loads boto3, only inside `check`. It
changes no key: the policy goes to standard output.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import closing
from enum import IntEnum
from pathlib import Path
from typing import Annotated, Final

import typer

from mrgc.cli_lines import print_line
from mrgc.client_settings import AwsAccess
from mrgc.errors import ConfigError
from mrgc.measurements import extend_zero, parse_pcr, read_measurements
from mrgc.policy import ACCOUNT, PRINCIPAL, ROLE, account_root, key_policy
from mrgc.policy_review import Expected, Review, review
from mrgc.wire.headers import KEY_ARN, TENANT

_INSTANCE: Final = re.compile(r"i-([0-9a-f]{8}|[0-9a-f]{17})")
_TENANT_WANTED: Final = "--tenant or MRGC_TENANT: a tenant's name, such as acme"


class CheckExit(IntEnum):
    """Exit codes of `mrgc policy check`, beside those that every command has."""

    NOTHING = 0
    LOOSENED = 3


_COMMON: Final = (
    "   2  wrong usage",
    "  10  a setting or a local file is missing, malformed or unusable",
)
EPILOG: Final = "\n".join(("\b", "Exit codes:", "   0  the policy is printed", *_COMMON))
CHECK_EPILOG: Final = "\n".join(
    (
        "\b",
        "Exit codes:",
        f"{CheckExit.NOTHING.value:4}  nothing loosens the policy",
        _COMMON[0],
        f"{CheckExit.LOOSENED.value:4}  something loosens the policy, and is listed",
        _COMMON[1],
        "  11  KMS does not answer: try again",
        "  12  KMS refuses to show policy or grants",
    )
)

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

_Pcrs = Annotated[Path | None, typer.Option(metavar="FILE", help="pcr-values.json, or a stack's catalog.json")]
_Tenant = Annotated[str | None, typer.Option(metavar="NAME", help="tenant of the jobs; default MRGC_TENANT")]
_Account = Annotated[
    str | None, typer.Option(metavar="12 DIGITS", help="account that keeps the key, by its IAM policies")
]
_Principal = Annotated[
    str | None, typer.Option(metavar="ARN", help="user or role that keeps the key, in place of an account")
]
_Role = Annotated[str | None, typer.Option(metavar="ARN", help="role under which the service calls KMS")]


@app.callback(invoke_without_command=True, epilog=EPILOG)
def policy(  # noqa: PLR0913 - typer takes one parameter per option
    context: typer.Context,
    *,
    pcrs: _Pcrs = None,
    tenant: _Tenant = None,
    account: _Account = None,
    tenant_principal: _Principal = None,
    role: _Role = None,
    pcr8: Annotated[bool, typer.Option("--pcr8", help="pin PCR8 (signing certificate) of FILE, too")] = False,
    pcr3: Annotated[str | None, typer.Option(metavar="HEX|ROLE-ARN", help="pin PCR3, the parent's role, too")] = None,
    pcr4: Annotated[str | None, typer.Option(metavar="HEX|INSTANCE", help="pin PCR4, the instance, too")] = None,
    json_protocol: Annotated[
        bool, typer.Option("--json-protocol", help="also admit bare payloads of the JSON protocol")
    ] = False,
) -> None:
    """Print the KMS key policy that lets one enclave image, and nothing else of the service, open a tenant's jobs.

    Needs --pcrs, --role, a tenant, and one of --account and --tenant-principal. The output is what
    `aws kms put-key-policy --policy file://…` takes. `mrgc policy check` reviews a key's live policy.
    """
    if context.invoked_subcommand is not None:
        if any(context.params.values()):
            raise typer.BadParameter(f"options of {context.invoked_subcommand} stand after it")
        return
    if pcrs is None or role is None:
        raise typer.BadParameter("--pcrs and --role are needed")
    measured = read_measurements(pcrs)
    further = {index: _register(index, argument) for index, argument in ((3, pcr3), (4, pcr4)) if argument is not None}
    if pcr8:
        further[8] = _signer(measured, pcrs)
    keeper = _keeper(account, tenant_principal)
    try:
        document = key_policy(
            pcr0=measured[0],
            tenant=_of_form(tenant, TENANT, _TENANT_WANTED, variable="MRGC_TENANT"),
            tenant_principal=keeper if tenant_principal else account_root(keeper, service_role=role),
            service_role=role,
            further_pcrs=further,
            json_protocol=json_protocol,
        )
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from error
    print_line(json.dumps(document, indent=2))


@app.command(epilog=CHECK_EPILOG)
def check(  # noqa: PLR0913 - typer takes one parameter per option
    *,
    key: Annotated[str | None, typer.Option(metavar="ARN", help="the KMS key; default MRGC_KEY_ARN")] = None,
    tenant: _Tenant = None,
    account: _Account = None,
    tenant_principal: _Principal = None,
    role: _Role = None,
    pcrs: _Pcrs = None,
    json_protocol: Annotated[
        bool, typer.Option("--json-protocol", help="the JSON protocol's bare payloads are wanted")
    ] = False,
    json_line: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List what loosens a key's live policy: other principals, missing conditions, no Deny, grants.

    Reads GetKeyPolicy and ListGrants with your AWS credentials. What you do not say (your principal, the service's
    role) is taken from the policy, where it names exactly one, and printed: look at it. The image is compared only with
    --pcrs.
    """
    key_arn = _of_form(key, KEY_ARN, "--key or MRGC_KEY_ARN: the ARN of a KMS key", variable="MRGC_KEY_ARN")
    expected = Expected(
        key_arn=key_arn,
        tenant=_of_form(tenant, TENANT, _TENANT_WANTED, variable="MRGC_TENANT"),
        tenant_principal=None if (account, tenant_principal) == (None, None) else _keeper(account, tenant_principal),
        service_role=None if role is None else _of_form(role, ROLE, "--role: the ARN of a role"),
        pcrs=None if pcrs is None else read_measurements(pcrs),
        json_protocol=json_protocol,
    )
    from mrgc.tenant_kms import TenantKms  # noqa: PLC0415 - boto3 takes half a second that only this command needs

    with closing(TenantKms(key_arn, AwsAccess.from_env(os.environ))) as kms:
        judged = review(kms.policy(), kms.grants(), expected)
    print_line(json.dumps(_fields(judged, expected)) if json_line else "\n".join(_lines(judged, expected)))
    raise typer.Exit(CheckExit.LOOSENED if judged.findings else CheckExit.NOTHING)


def _keeper(account: str | None, tenant_principal: str | None) -> str:
    """Return who keeps the key: an account's 12 digits, or an ARN."""
    if (account is None) == (tenant_principal is None):
        raise typer.BadParameter("exactly one of --account and --tenant-principal is needed")
    if account is not None:
        return _of_form(account, ACCOUNT, "--account: 12 digits")
    return _of_form(tenant_principal, PRINCIPAL, "--tenant-principal: the ARN of a user, a role or an account's root")


def _of_form(value: str | None, pattern: re.Pattern[str], wanted: str, *, variable: str = "") -> str:
    """Return an option's value, or its variable's where the option is absent.

    An empty argument is a shell variable that was not set, not an option that was not given.
    """
    found = os.environ.get(variable, "") if value is None else value
    if pattern.fullmatch(found) is None:
        raise typer.BadParameter(wanted)
    return found


def _register(index: int, argument: str) -> bytes:
    """Return the register of an option: from its hex, or from what AWS derives it from."""
    if {3: ROLE, 4: _INSTANCE}[index].fullmatch(argument):
        return extend_zero(argument)
    try:
        return parse_pcr(argument)
    except ConfigError as error:
        raise typer.BadParameter(f"--pcr{index}: {error}") from error


def _signer(measured: dict[int, bytes], file: Path) -> bytes:
    if not any(measured.get(8, b"")):
        raise ConfigError(f"{file}: no PCR8: the image is not signed")
    return measured[8]


def _fields(judged: Review, expected: Expected) -> dict[str, object]:
    return {
        "key_arn": expected.key_arn,
        "tenant": expected.tenant,
        "tenant_principal": judged.tenant_principal,
        "service_role": judged.service_role,
        "images": list(judged.images),
        "loosened": bool(judged.findings),
        "findings": [each._asdict() for each in judged.findings],
        "notes": list(judged.notes),
    }


def _lines(judged: Review, expected: Expected) -> Iterator[str]:
    """Yield what a person reads; names come from the policy, so they are printed as ASCII without controls."""
    yield f"key       {expected.key_arn}"
    yield f"tenant    {expected.tenant}, {_plain(judged.tenant_principal or 'no single principal found: say which')}"
    yield f"service   {_plain(judged.service_role or 'no single role found: say --role')}"
    for image in judged.images:
        yield f"image     {_plain(image)}"
    for finding in judged.findings:
        yield f"loosened  {finding.code}: {f'{_plain(finding.sid)}: ' if finding.sid else ''}{_plain(finding.text)}"
    for note in judged.notes:
        yield f"note      {_plain(note)}"
    if not judged.findings:
        yield "nothing loosens this policy"


def _plain(text: str) -> str:
    return json.dumps(text)[1:-1]
