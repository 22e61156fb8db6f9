"""What a tenant configures: read from a mapping of environment variables, once, by `Client.from_env`.

Values are checked here for form; whether the servers they name answer is found out by the modules that talk to
them. Settings that only some commands need (queue, results, model) may be absent until they are asked for.

May import: the standard library, mrgc.errors, mrgc.wire.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mrgc.errors import ConfigError
from mrgc.wire.headers import KEY_ARN, MODEL, TENANT


@dataclass(frozen=True, slots=True)
class AwsAccess:
    """How to reach AWS: explicit values win, absent ones leave the choice to boto3's default chain.

    Carried as a value, not read from the process's environment, so that two tenants fit in one process.
    """

    access_key: str | None = None
    secret_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    kms_endpoint: str | None = None
    s3_endpoint: str | None = None
    ca_bundle: str | None = None
    region: str | None = None

    def __post_init__(self) -> None:
        """Refuse half a pair, which boto3 would replace by whatever its default chain finds."""
        if (self.access_key is None) != (self.secret_key is None):
            raise ConfigError(
                "aws credentials are incomplete: an access key id and a secret access key belong together"
            )

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> AwsAccess:
        """Read boto3's own variable names, so that stand-ins need no setting of ours."""
        endpoint = environ.get("AWS_ENDPOINT_URL")
        return cls(
            access_key=environ.get("AWS_ACCESS_KEY_ID") or None,
            secret_key=environ.get("AWS_SECRET_ACCESS_KEY") or None,
            session_token=environ.get("AWS_SESSION_TOKEN") or None,
            kms_endpoint=environ.get("AWS_ENDPOINT_URL_KMS") or endpoint or None,
            s3_endpoint=environ.get("AWS_ENDPOINT_URL_S3") or endpoint or None,
            ca_bundle=environ.get("AWS_CA_BUNDLE") or None,
            region=environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or None,
        )


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """A tenant's settings. `key_arn` is the one that results are compared with (docs/spec.md §4)."""

    tenant: str
    key_arn: str
    state: Path
    aws: AwsAccess
    #: May hold a password.
    queue_url: str = field(default="", repr=False)
    results_url: str = ""
    model: str = ""

    def __post_init__(self) -> None:
        """Refuse what no command could use."""
        _ensure(TENANT.fullmatch(self.tenant) is not None, "MRGC_TENANT", "a tenant name such as acme")
        _ensure(KEY_ARN.fullmatch(self.key_arn) is not None, "MRGC_KEY_ARN", "the ARN of a KMS key, not of an alias")
        _ensure(not self.model or MODEL.fullmatch(self.model) is not None, "MRGC_MODEL", "a model name")

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> ClientSettings:
        """Read MRGC_* and AWS_* variables.

        Raises:
            ConfigError: MRGC_TENANT or MRGC_KEY_ARN is missing, or a value is malformed.
        """
        return cls(
            tenant=environ.get("MRGC_TENANT", ""),
            key_arn=environ.get("MRGC_KEY_ARN", ""),
            state=_state_folder(environ),
            aws=AwsAccess.from_env(environ),
            queue_url=environ.get("MRGC_QUEUE_URL", ""),
            results_url=environ.get("MRGC_RESULTS_URL", ""),
            model=environ.get("MRGC_MODEL", ""),
        )


def _state_folder(environ: Mapping[str, str]) -> Path:
    """MRGC_STATE, or the state folder of the XDG Base Directory Specification 0.8."""
    if environ.get("MRGC_STATE"):
        return Path(environ["MRGC_STATE"]).expanduser()
    base = environ.get("XDG_STATE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".local" / "state") / "mrgc"


def _ensure(holds: bool, name: str, wanted: str) -> None:
    if not holds:
        raise ConfigError(f"{name} is missing or malformed: set it to {wanted}")
