"""What an operator and two tenants would set up by hand, done for the one-machine stack.

KMS principals and keys with their policies, the registry of tenants, and the files that a person or a test reads:
DIR/env (first tenant), DIR/env.<tenant> and DIR/catalog.json. Idempotent: a restart in the same directory finds its
keys and credentials again.

Called by infra.local. May import: the standard library, boto3, mrgc, worker, infra.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import boto3
from botocore.config import Config

from infra import queue_access
from infra.durable_file import replace_file
from infra.eif import build, reader
from infra.eif.fetch import CACHE, PackageCache
from infra.eif.profiles import VM
from infra.kms_config import KmsConfig, Principal, write_config
from infra.local_enclave import pcrs
from infra.sqs_api import ACCOUNT
from mrgc.policy import key_policy
from mrgc.wire.queue_urls import parse_sqs
from worker import redis_users
from worker.sources.sqs_layout import LEAST_RECEIVES

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

REGION: Final = "eu-west-1"
#: Celery's queues (celeryconfig.py), and their attributes as docs/operations.md §8 says.
CELERY_QUEUES: Final = ("control", "infer")
CONTROL_RECEIVES: Final = 5
CONTROL_VISIBILITY_S: Final = 900
SERVICE_ROLE: Final = "arn:aws:iam::111122223333:role/mrgc-worker"
#: Credentials for the local SQS, which looks at no signature.
ANYBODY: Final = {"AWS_ACCESS_KEY_ID": "anybody", "AWS_SECRET_ACCESS_KEY": "anybody", "AWS_DEFAULT_REGION": REGION}


@dataclass(frozen=True, slots=True)
class Stack:
    """Where everything of one one-machine stack lies."""

    directory: Path
    models: Path
    tenants: tuple[str, ...]
    #: Loopback ports of redis, sqs, kms, agent and worker.
    ports: dict[str, int]
    #: CPU threads of the engine; 0 leaves torch's choice.
    threads: int
    #: Whether the enclave serves the JSON protocol, and the tenants' keys admit it.
    json_protocol: bool = False
    #: Which broker holds the tenants' jobs.
    queue: Literal["redis", "sqs"] = "redis"
    #: Where the enclave's code runs: in a process beside the others, or as a whole image in a virtual machine.
    enclave_in: Literal["process", "vm"] = "process"
    #: MRGC_DEVICE of the engine.
    device: str = "cpu"

    @property
    def image(self) -> Path:
        """The enclave image that a virtual machine boots."""
        return self.directory / "image" / build.IMAGE_FILE

    @property
    def enclave(self) -> str:
        """Address of the enclave socket."""
        return f"unix:{self.directory}/run/enclave.sock"

    @property
    def engine(self) -> str:
        """Address of the engine socket."""
        return f"unix:{self.directory}/run/engine.sock"

    @property
    def token_file(self) -> Path:
        """The enclave token, for the agent to write and the engine to read."""
        return self.directory / "run" / "token"

    @property
    def queue_url(self) -> str:
        """MRGC_QUEUE_URL of the worker: Redis with the tenants' streams, or the tenants' queues at the local SQS."""
        return self.sqs_url if self.queue == "sqs" else self.redis_url(redis_users.WORKER)

    @property
    def sqs_url(self) -> str:
        """The tenants' queues at the local SQS."""
        return f"{self.sqs_endpoint}/{ACCOUNT}/mrgc-{{tenant}}"

    @property
    def broker_url(self) -> str:
        """MRGC_BROKER_URL: Celery's queues lie at the broker that holds the tenants' jobs."""
        if self.queue == "sqs":
            # No tenant's name has an underscore, so none of their queues can be one of Celery's.
            return f"{self.sqs_endpoint}/{ACCOUNT}/mrgc-celery_{{queue}}"
        return self.redis_url(redis_users.CONTROL, database=1)

    def redis_url(self, user: str, database: int = 0) -> str:
        """Return the URL of the Redis as one of its users has it; database 0 holds the queues, 1 is Celery's."""
        return f"redis://{queue_access.login(self.directory, user)}127.0.0.1:{self.ports['redis']}/{database}"

    def tenant_queue_url(self, tenant: str) -> str:
        """MRGC_QUEUE_URL of a tenant."""
        return self.sqs_url if self.queue == "sqs" else self.redis_url(redis_users.TENANT_PREFIX + tenant)

    @property
    def sqs_endpoint(self) -> str:
        """Where the local SQS answers."""
        return f"http://127.0.0.1:{self.ports['sqs']}"

    @property
    def results_url(self) -> str:
        """Prefix of result objects."""
        return f"file://{self.directory}/results/"

    @property
    def registry(self) -> Path:
        """The registry of tenants."""
        return self.directory / "tenants.toml"

    @property
    def kms_ca(self) -> Path:
        """CA of the local KMS, written by it at its first start."""
        return self.directory / "kms" / "ca.pem"

    @property
    def kms_endpoint(self) -> str:
        """Where tenants reach the local KMS."""
        return f"https://127.0.0.1:{self.ports['kms']}"


def kms_config(stack: Stack) -> Path:
    """Write the local KMS's configuration, with one principal per tenant and one for the service."""
    holders = {
        each["access_key"]: Principal(each["arn"], each["secret"], is_administrator=name != "service")
        for name, each in _credentials(stack).items()
    }
    (stack.directory / "kms").mkdir(exist_ok=True)
    config = KmsConfig(
        state=stack.directory / "kms",
        nsm_root=stack.directory / "nsm" / "root.pem",
        principals=holders,
        regions=(REGION,),
        port=stack.ports["kms"],
    )
    path = stack.directory / "kms.json"
    write_config(path, config)
    return path


def service_credentials(stack: Stack) -> dict[str, str]:
    """Credentials of the service's role, as boto3's default chain reads them from an environment."""
    return _aws_env(_credentials(stack)["service"])


def image(stack: Stack) -> None:
    """Build the virtual machine's enclave image, which trusts the local KMS. Needs that to be up: it makes its CA.

    Raises:
        ConfigError: the image's packages cannot be had.
    """
    plan = build.Plan(profile=VM, kms_roots=stack.kms_ca)
    build.build(plan, PackageCache(CACHE, mirrors={}), out=stack.image.parent)


def pcr0(stack: Stack) -> bytes:
    """Return the measurement that the tenants' key policies demand: that of the enclave which this stack starts."""
    return reader.read(stack.image).pcrs[0] if stack.enclave_in == "vm" else pcrs()[0]


def tenants(stack: Stack) -> None:
    """Create each tenant's key and write registry, env files and catalog. Needs the local KMS to be up."""
    measurement = pcr0(stack)
    keys_file = stack.directory / "keys.json"
    keys: dict[str, str] = json.loads(keys_file.read_text()) if keys_file.exists() else {}
    for tenant in stack.tenants:
        if tenant not in keys:
            keys[tenant] = create_key(stack, tenant, measurement)
            replace_file(keys_file, json.dumps(keys).encode())
        put_policy(stack, tenant, keys[tenant], measurement)
    replace_file(stack.registry, _registry(stack, keys).encode())
    for tenant in stack.tenants:
        replace_file(stack.directory / f"env.{tenant}", _exports(stack, tenant, keys[tenant]).encode())
    replace_file(stack.directory / "env", _exports(stack, stack.tenants[0], keys[stack.tenants[0]]).encode())
    catalog = {"models": _models(stack), "pcr0": measurement.hex()}
    replace_file(stack.directory / "catalog.json", json.dumps(catalog, indent=1).encode())


def queues(stack: Stack) -> None:
    """Create the tenants' and Celery's queues at the local SQS with their dead letters, as docs/operations.md says."""
    sqs = boto3.client(
        "sqs",
        region_name=REGION,
        endpoint_url=stack.sqs_endpoint,
        aws_access_key_id=ANYBODY["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=ANYBODY["AWS_SECRET_ACCESS_KEY"],
    )
    template = parse_sqs(stack.sqs_url)
    with contextlib.closing(sqs):
        for tenant in stack.tenants:
            _create_queue(sqs, template.queue(tenant), template.dead(tenant), most_receives=LEAST_RECEIVES)
        for name in CELERY_QUEUES:
            url = stack.broker_url.replace("{queue}", name)
            _create_queue(sqs, url, f"{url}_dead", most_receives=CONTROL_RECEIVES, visibility_s=CONTROL_VISIBILITY_S)


def _create_queue(sqs: SQSClient, url: str, dead_url: str, *, most_receives: int, visibility_s: int = 30) -> None:
    sqs.create_queue(QueueName=dead_url.rpartition("/")[2])
    dead = sqs.get_queue_attributes(QueueUrl=dead_url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    redrive = json.dumps({"deadLetterTargetArn": dead, "maxReceiveCount": most_receives})
    attributes: Any = {"RedrivePolicy": redrive, "VisibilityTimeout": str(visibility_s)}
    sqs.create_queue(QueueName=url.rpartition("/")[2], Attributes=attributes)


def kms(stack: Stack, who: str) -> Any:
    """Return a KMS client that signs as a tenant, or as `service`."""
    holder = _credentials(stack)[who]
    return boto3.client(
        "kms",
        region_name=REGION,
        endpoint_url=stack.kms_endpoint,
        verify=str(stack.kms_ca),
        aws_access_key_id=holder["access_key"],
        aws_secret_access_key=holder["secret"],
        config=Config(retries={"mode": "standard", "total_max_attempts": 3}, connect_timeout=5, read_timeout=10),
    )


def principal(stack: Stack, who: str) -> str:
    """Return the ARN that `kms` signs as."""
    return _credentials(stack)[who]["arn"]


def create_key(stack: Stack, tenant: str, measurement: bytes) -> str:
    """Create a key of `tenant` that only an enclave with this PCR0 may use, and return its ARN."""
    policy = _policy(stack, tenant, measurement)
    created = kms(stack, tenant).create_key(Policy=json.dumps(policy), Description=f"mrgc tenant {tenant}")
    arn: str = created["KeyMetadata"]["Arn"]
    return arn


def put_policy(stack: Stack, tenant: str, key_arn: str, measurement: bytes) -> None:
    """Make the key's policy demand this PCR0: the code may have changed since the key was made."""
    policy = _policy(stack, tenant, measurement)
    kms(stack, tenant).put_key_policy(KeyId=key_arn, PolicyName="default", Policy=json.dumps(policy))


def _policy(stack: Stack, tenant: str, measurement: bytes) -> dict[str, Any]:
    return key_policy(
        tenant=tenant,
        tenant_principal=principal(stack, tenant),
        service_role=SERVICE_ROLE,
        pcr0=measurement,
        json_protocol=stack.json_protocol,
    )


def _credentials(stack: Stack) -> dict[str, dict[str, str]]:
    file = stack.directory / "principals.json"
    known: dict[str, dict[str, str]] = json.loads(file.read_text()) if file.exists() else {}
    arns = {"service": SERVICE_ROLE} | {
        tenant: f"arn:aws:iam::{_account(tenant)}:role/{tenant}" for tenant in stack.tenants
    }
    missing = {
        name: {"arn": arn, "access_key": f"AKIA{secrets.token_hex(8).upper()}", "secret": secrets.token_urlsafe(30)}
        for name, arn in arns.items()
        if name not in known
    }
    if missing:
        known |= missing
        replace_file(file, json.dumps(known, indent=1).encode())
    return known


def _account(tenant: str) -> str:
    """Return 12 digits of the tenant's own: an administrator reaches every key of his account."""
    return f"{int.from_bytes(hashlib.sha256(tenant.encode()).digest()[:5]) % 10**12:012d}"


def _aws_env(holder: dict[str, str]) -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": holder["access_key"],
        "AWS_SECRET_ACCESS_KEY": holder["secret"],
        "AWS_DEFAULT_REGION": REGION,
    }


def _exports(stack: Stack, tenant: str, key_arn: str) -> str:
    settings = {
        "MRGC_TENANT": tenant,
        "MRGC_KEY_ARN": key_arn,
        "MRGC_QUEUE_URL": stack.tenant_queue_url(tenant),
        "MRGC_RESULTS_URL": stack.results_url,
        "MRGC_MODEL": _models(stack)[0]["name"],
        "MRGC_STATE": str(stack.directory / "state" / tenant),
        "MRGC_ENCLAVE": stack.enclave,
        "AWS_ENDPOINT_URL_KMS": stack.kms_endpoint,
        "AWS_CA_BUNDLE": str(stack.kms_ca),
        **_aws_env(_credentials(stack)[tenant]),
    }
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in settings.items())


def _registry(stack: Stack, keys: dict[str, str]) -> str:
    models = json.dumps([model["name"] for model in _models(stack)])
    return "\n".join(
        f"[tenants.{tenant}]\nweight = 1\nkey_arns = {json.dumps([keys[tenant]])}\nmodels = {models}\n"
        for tenant in stack.tenants
    )


def _models(stack: Stack) -> list[dict[str, Any]]:
    found = []
    for path in sorted(stack.models.glob("*/manifest.json")):
        manifest = json.loads(path.read_bytes())
        shown = {name: manifest[name] for name in ("name", "dimensions", "max_tokens")}
        found.append(shown | {"digest": hashlib.sha256(path.read_bytes()).hexdigest()})
    return found
