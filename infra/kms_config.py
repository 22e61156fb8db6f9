"""Configuration of the one-machine KMS: one JSON file, written by whoever sets the stack up, read by the server.

Called by `infra.local`, `infra.local_kms` and tests. May import: the standard library, mrgc.errors,
infra.durable_file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from infra.durable_file import replace_file
from mrgc.errors import ConfigError

_PRINCIPAL_ARN: Final = re.compile(r"arn:aws[a-z-]*:iam::[0-9]{12}:(user|role)/[A-Za-z0-9+=,.@_/-]+")
_REGION: Final = re.compile(r"[a-z0-9-]{5,30}")


@dataclass(frozen=True, slots=True)
class Principal:
    """Who signs with one access key: a user, or a role (aws:PrincipalArn of its sessions).

    Attributes:
        is_administrator: IAM, as far as there is any: whether a key policy that allows this principal's account
            allows this principal.
    """

    arn: str
    secret: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)
    is_administrator: bool = False

    def __post_init__(self) -> None:
        if _PRINCIPAL_ARN.fullmatch(self.arn) is None:
            raise ConfigError("principal is not the ARN of a user or a role")

    @property
    def account(self) -> str:
        """Return the twelve digits of the account in which this principal creates keys."""
        return self.arn.split(":")[4]


@dataclass(frozen=True, slots=True)
class KmsConfig:
    """Everything the server is told.

    Attributes:
        state: folder of keys and TLS files, created by the server; `ca.pem` appears there.
        nsm_root: PEM file of the root under which attestation documents must be signed.
        principals: access key id → who holds it.
        regions: served regions; the server's certificate names `kms.<region>.amazonaws.com` for each.
        host: loopback address to listen on.
        port: 0 = any free one, told in the ready file. Fix it where a restarted server must be found again.
    """

    state: Path
    nsm_root: Path
    principals: Mapping[str, Principal]
    regions: tuple[str, ...] = ("eu-west-1",)
    host: str = "127.0.0.1"
    port: int = 0

    def __post_init__(self) -> None:
        if not self.regions or not all(_REGION.fullmatch(region) for region in self.regions):
            raise ConfigError("regions of the one-machine KMS")
        if not self.host.startswith("127."):
            raise ConfigError("the one-machine KMS listens on loopback only")


def write_config(path: Path, config: KmsConfig) -> None:
    """Write the configuration file; mode 0600, because it holds the principals' secrets."""
    principals = {access_key: asdict(each) for access_key, each in config.principals.items()}
    fields = {
        "state": str(config.state),
        "nsm_root": str(config.nsm_root),
        "principals": principals,
        "regions": list(config.regions),
        "host": config.host,
        "port": config.port,
    }
    replace_file(path, json.dumps(fields, indent=1).encode())


def load_config(path: Path) -> KmsConfig:
    """Read a configuration file.

    Raises:
        ConfigError: the file is missing or is not what `write_config` writes.
    """
    try:
        fields = json.loads(path.read_text())
        return KmsConfig(
            state=Path(fields["state"]),
            nsm_root=Path(fields["nsm_root"]),
            principals={key: Principal(**each) for key, each in fields["principals"].items()},
            regions=tuple(fields["regions"]),
            host=fields["host"],
            port=fields["port"],
        )
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise ConfigError(f"configuration of the one-machine KMS: {type(err).__name__}") from err
