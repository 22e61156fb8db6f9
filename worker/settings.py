"""Every knob of the three host processes: name, unit, default, check.

One frozen object per process, read once in its `main` from an environment mapping that the caller passes in; nothing
here touches `os.environ`. A wrong value raises ConfigError before the first message is taken.

May import: the standard library, mrgc.errors, mrgc.wire. Called by tasks.intake_step, worker.engine and
worker.enclave_agent.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mrgc.errors import ConfigError
from mrgc.wire.addresses import UnixAddress, parse_address
from mrgc.wire.sealed import MAX_BODY_BYTES, MAX_HEADER_BYTES, TAG_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping

#: docs/spec.md §1: what a sealed object is longer than its body, at most; 12 is the fixed prefix.
MAX_OVERHEAD_BYTES: Final = 12 + MAX_HEADER_BYTES + TAG_BYTES
#: docs/spec.md §6: a frame is at most 64 MiB; 1 MiB of it is kept for its header.
MAX_BATCH_BYTES: Final = 63 << 20
#: docs/spec.md §6: jobs in one enclave frame.
MAX_BATCH_JOBS: Final = 1_024

_RESULTS: Final = re.compile(r"file:///(.*/)?|s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/(.*/)?")
#: Amazon CloudWatch API Reference, "PutMetricData": 255 characters, none of them a colon; AWS/ is AWS's own.
_NAMESPACE: Final = re.compile(r"(?!AWS/)[A-Za-z0-9._/#-]{1,255}")
_IMDS: Final = re.compile(r"http://(\[[0-9a-f:]+\]|[a-z0-9.-]+)(:[0-9]{1,5})?")
#: Amazon EC2 Auto Scaling API Reference, "CompleteLifecycleAction".
_GROUP: Final = re.compile(r"[ -9;-~]{1,255}")
_HOOK: Final = re.compile(r"[A-Za-z0-9_/-]{1,255}")
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_DEVICE: Final = re.compile(r"cpu|cuda(:[0-9]{1,2})?")


@dataclass(frozen=True, slots=True)
class HttpAddress:
    """Where a process answers /healthz, /readyz and /metrics. Port 0 takes any free port."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class DepartureSettings:
    """How the worker learns that its instance goes away, and which hook it answers after its drain.

    Raises:
        ConfigError: a hook without its group, or a group without its hook.
    """

    #: http://host[:port] of the instance metadata service.
    imds: str
    #: Auto Scaling group and lifecycle hook; both empty where no hook waits for this worker.
    group: str = ""
    hook: str = ""
    #: Whether a rebalance recommendation, which may come long before an interruption or without one, drains too.
    on_rebalance: bool = False

    def __post_init__(self) -> None:
        """Check that there are both or neither."""
        if bool(self.group) != bool(self.hook):
            raise ConfigError("MRGC_AUTOSCALING_GROUP and MRGC_LIFECYCLE_HOOK go together")


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """Settings of the Celery worker's intake. It has no token, no key and no credentials of a tenant.

    Raises:
        ConfigError: a value is out of range or contradicts another.
    """

    #: The tenants' queues at Redis or SQS; may carry a password, so it is never shown.
    queue_url: str = field(repr=False)
    #: Celery's broker for control tasks; another database than the queue's.
    broker_url: str = field(repr=False)
    #: Default prefix of result objects: file:///dir/ or s3://bucket/prefix/.
    results_url: str
    #: tenants.toml.
    registry: Path
    #: One address per engine, `unix:PATH`.
    engines: tuple[str, ...]
    http: HttpAddress | None = None
    #: How long a received message stays ours without a heartbeat.
    lease_s: float = 30.0
    max_batch_jobs: int = 64
    #: Sealed bytes of one job batch, and the most that its answers are expected to take.
    max_batch_bytes: int = 48 << 20
    #: How long an idle engine waits for a batch to fill.
    max_wait_ms: float = 5.0
    #: Bounds on what is held at once, from receive to ack; at a bound nothing is received.
    max_inflight_jobs: int = 1_024
    max_inflight_bytes: int = 256 << 20
    max_body_bytes: int = MAX_BODY_BYTES
    #: How long a drain may finish what was taken before the rest is handed back.
    drain_s: float = 20.0
    #: Endpoint of a stand-in for S3; None is AWS's own.
    s3_endpoint: str | None = None
    #: How tenants hear of ended jobs: `stream`, `off`, or the ARN of an SNS topic; empty: as the queue's broker can.
    notices: str = ""
    #: None where there is no instance metadata.
    departure: DepartureSettings | None = None

    def __post_init__(self) -> None:
        """Check the bounds that hold between settings."""
        if self.max_body_bytes + MAX_OVERHEAD_BYTES > self.max_batch_bytes:
            raise ConfigError("MRGC_MAX_BATCH_BYTES does not hold one job of MRGC_MAX_BODY_BYTES")
        if self.max_batch_bytes > self.max_inflight_bytes:
            raise ConfigError("MRGC_MAX_INFLIGHT_BYTES does not hold one batch of MRGC_MAX_BATCH_BYTES")
        if self.max_batch_jobs > self.max_inflight_jobs:
            raise ConfigError("MRGC_MAX_INFLIGHT_JOBS does not hold one batch of MRGC_MAX_BATCH_JOBS")

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> WorkerSettings:
        """Read the intake's settings.

        Args:
            environ: the process's environment, MRGC_* and AWS_ENDPOINT_URL_S3.

        Returns:
            The checked settings.

        Raises:
            ConfigError: a setting is missing, malformed or contradictory; names the variable, never its value.
        """
        env = _Env(environ)
        return cls(
            queue_url=env.text("MRGC_QUEUE_URL"),
            broker_url=env.text("MRGC_BROKER_URL"),
            results_url=env.text("MRGC_RESULTS_URL", pattern=_RESULTS),
            registry=Path(env.text("MRGC_REGISTRY")),
            engines=env.unix_addresses("MRGC_ENGINES"),
            http=env.http("MRGC_WORKER_HTTP"),
            lease_s=env.number("MRGC_LEASE_S", 30.0, within=(0.2, 3_600.0)),
            max_batch_jobs=env.integer("MRGC_MAX_BATCH_JOBS", 64, within=(1, MAX_BATCH_JOBS)),
            max_batch_bytes=env.integer("MRGC_MAX_BATCH_BYTES", 48 << 20, within=(1 << 16, MAX_BATCH_BYTES)),
            max_wait_ms=env.number("MRGC_MAX_WAIT_MS", 5.0, within=(0.0, 10_000.0)),
            max_inflight_jobs=env.integer("MRGC_MAX_INFLIGHT_JOBS", 1_024, within=(1, 1 << 20)),
            max_inflight_bytes=env.integer("MRGC_MAX_INFLIGHT_BYTES", 256 << 20, within=(1 << 20, 1 << 40)),
            max_body_bytes=env.integer("MRGC_MAX_BODY_BYTES", MAX_BODY_BYTES, within=(1, MAX_BODY_BYTES)),
            drain_s=env.number("MRGC_DRAIN_S", 20.0, within=(0.0, 3_600.0)),
            notices=environ.get("MRGC_NOTICES", ""),
            departure=_departure(env),
            s3_endpoint=environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL") or None,
        )


@dataclass(frozen=True, slots=True)
class EdgeSettings:
    """What a Celery process needs that only puts jobs into queues, or mends them: no engine, no object store."""

    queue_url: str = field(repr=False)
    registry: Path
    max_body_bytes: int = MAX_BODY_BYTES
    #: CloudWatch namespace of the metrics that control tasks write to standard output (worker.emf); empty writes none.
    emf_namespace: str = ""

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> EdgeSettings:
        """Read the edge's settings, a part of the worker's.

        Raises:
            ConfigError: a setting is missing or malformed; names the variable, never its value.
        """
        env = _Env(environ)
        return cls(
            queue_url=env.text("MRGC_QUEUE_URL"),
            registry=Path(env.text("MRGC_REGISTRY")),
            max_body_bytes=env.integer("MRGC_MAX_BODY_BYTES", MAX_BODY_BYTES, within=(1, MAX_BODY_BYTES)),
            emf_namespace=env.optional("MRGC_EMF_NAMESPACE", _NAMESPACE),
        )


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Settings of one engine: the process that holds plaintext. It has no inet address on purpose."""

    #: `unix:PATH` that the engine listens on for the intake.
    engine: str
    #: `unix:PATH` or `vsock:CID:PORT` of the enclave.
    enclave: str
    #: File with the enclave token, readable by the engine's user only.
    token_file: Path
    #: Folder of model folders.
    models: Path
    device: str = "cpu"
    #: auto, bf16 or fp32; auto is bf16 where the device has it natively.
    dtype: str = "auto"
    #: Threads of a CPU forward, each with a piece of the token batch to itself; 0 leaves torch's default.
    threads: int = 0
    #: Processes that tokenise; None leaves it to the engine, which goes by its device and its cores.
    tokeniser_processes: int | None = None
    #: Tokens of one forward pass; 0 leaves it to the engine, which goes by the kind of its device.
    max_batch_tokens: int = 0
    max_body_bytes: int = MAX_BODY_BYTES
    #: What the weights of all models may take of the device's memory; 0 is half of it.
    model_memory_bytes: int = 0
    #: Handlers of installed packages that a manifest may name (entry points of mrgc.models).
    model_handlers: frozenset[str] = frozenset()

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> EngineSettings:
        """Read the engine's settings.

        Raises:
            ConfigError: a setting is missing or malformed; names the variable, never its value.
        """
        env = _Env(environ)
        return cls(
            engine=env.unix_address("MRGC_ENGINE"),
            enclave=env.address("MRGC_ENCLAVE"),
            token_file=Path(env.text("MRGC_TOKEN_FILE")),
            models=Path(env.text("MRGC_MODELS")),
            device=env.text("MRGC_DEVICE", "cpu", pattern=_DEVICE),
            dtype=env.choice("MRGC_DTYPE", "auto", among=("auto", "bf16", "fp32")),
            threads=env.integer("MRGC_THREADS", 0, within=(0, 1_024)),
            tokeniser_processes=env.count_or_none("MRGC_TOKENISER_PROCESSES", most=256),
            max_batch_tokens=env.integer("MRGC_MAX_BATCH_TOKENS", 0, within=(0, 1 << 24)),
            max_body_bytes=env.integer("MRGC_MAX_BODY_BYTES", MAX_BODY_BYTES, within=(1, MAX_BODY_BYTES)),
            model_memory_bytes=env.integer("MRGC_MODEL_MEMORY_BYTES", 0, within=(0, 1 << 48)),
            model_handlers=env.names("MRGC_MODEL_HANDLERS"),
        )


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """Settings of the enclave agent. AWS credentials come from boto3's default chain, never from here."""

    #: `unix:PATH` or `vsock:CID:PORT` of the enclave.
    enclave: str
    #: File that the agent writes the enclave token to, for the engines to read.
    token_file: Path
    http: HttpAddress | None = None
    #: Whether the first hello switches docs/spec.md §8 on for connections without the token.
    json_protocol: bool = False

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> AgentSettings:
        """Read the agent's settings.

        Raises:
            ConfigError: a setting is missing or malformed; names the variable, never its value.
        """
        env = _Env(environ)
        return cls(
            enclave=env.address("MRGC_ENCLAVE"),
            token_file=Path(env.text("MRGC_TOKEN_FILE")),
            http=env.http("MRGC_AGENT_HTTP"),
            json_protocol=env.choice("MRGC_JSON_PROTOCOL", "0", among=("0", "1")) == "1",
        )


class _Env:
    """Typed reads of one environment. An empty variable counts as absent."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def text(self, name: str, default: str | None = None, *, pattern: re.Pattern[str] | None = None) -> str:
        value = self._environ.get(name) or default
        if value is None:
            raise ConfigError(f"{name} is not set")
        if pattern is not None and not pattern.fullmatch(value):
            raise ConfigError(f"{name} is malformed")
        return value

    def optional(self, name: str, pattern: re.Pattern[str]) -> str:
        return self.text(name, pattern=pattern) if self._environ.get(name) else ""

    def choice(self, name: str, default: str, *, among: tuple[str, ...]) -> str:
        value = self.text(name, default)
        if value not in among:
            raise ConfigError(f"{name} is none of {', '.join(among)}")
        return value

    def names(self, name: str) -> frozenset[str]:
        value = self._environ.get(name)
        found = frozenset(value.split(",")) if value else frozenset()
        if not all(map(_NAME.fullmatch, found)):
            raise ConfigError(f"{name} is not a list of names with commas between them")
        return found

    def number(self, name: str, default: float, *, within: tuple[float, float]) -> float:
        try:
            value = float(self.text(name, str(default)))
        except ValueError as err:
            raise ConfigError(f"{name} is not a number") from err
        # Written so that NaN, which compares false with everything, is refused too.
        if not within[0] <= value <= within[1]:
            raise ConfigError(f"{name} is not within {within[0]} .. {within[1]}")
        return value

    def integer(self, name: str, default: int, *, within: tuple[int, int]) -> int:
        value = self.number(name, default, within=within)
        if value != int(value):
            raise ConfigError(f"{name} is not a whole number")
        return int(value)

    def count_or_none(self, name: str, *, most: int) -> int | None:
        return self.integer(name, 0, within=(0, most)) if self._environ.get(name) else None

    def address(self, name: str) -> str:
        value = self.text(name)
        parse_address(value)
        return value

    def unix_address(self, name: str) -> str:
        return _ensure_unix(name, self.text(name))

    def unix_addresses(self, name: str) -> tuple[str, ...]:
        found = tuple(_ensure_unix(name, value) for value in self.text(name).split(","))
        if len(set(found)) != len(found):
            raise ConfigError(f"{name} names one address twice")
        return found

    def http(self, name: str) -> HttpAddress | None:
        value = self._environ.get(name)
        if not value:
            return None
        host, _, port = value.rpartition(":")
        if not host or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65_535:
            raise ConfigError(f"{name} is not host:port")
        return HttpAddress(host.strip("[]"), int(port))


def _departure(env: _Env) -> DepartureSettings | None:
    settings = DepartureSettings(
        imds=env.optional("MRGC_IMDS", _IMDS),
        group=env.optional("MRGC_AUTOSCALING_GROUP", _GROUP),
        hook=env.optional("MRGC_LIFECYCLE_HOOK", _HOOK),
        on_rebalance=env.choice("MRGC_DRAIN_ON_REBALANCE", "0", among=("0", "1")) == "1",
    )
    if settings.imds:
        return settings
    if settings.hook or settings.on_rebalance:
        raise ConfigError("MRGC_LIFECYCLE_HOOK and MRGC_DRAIN_ON_REBALANCE need MRGC_IMDS")
    return None


def _ensure_unix(name: str, value: str) -> str:
    if not isinstance(parse_address(value), UnixAddress):
        raise ConfigError(f"{name} is not a unix:PATH address")
    return value
