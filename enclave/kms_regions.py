"""Which KMS endpoints this enclave talks to; part of the measured image (docs/spec.md §7).

Called by `enclave.kms_handler` and `enclave.enclave_app`. May import: the standard library, mrgc.errors, mrgc.wire.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from mrgc.errors import KeyAccessError
from mrgc.wire.headers import KEY_ARN

#: Region → port of its vsock-proxy on the parent. A region that is not here is refused; each proxy needs as many
#: workers as `enclave.kms_calls` has threads (vsock-proxy --num_workers 16).
PROXY_PORTS: Final[Mapping[str, int]] = MappingProxyType(
    {
        "us-east-1": 8000,
        "us-east-2": 8001,
        "us-west-1": 8002,
        "us-west-2": 8003,
        "ca-central-1": 8004,
        "sa-east-1": 8005,
        "eu-west-1": 8006,
        "eu-west-2": 8007,
        "eu-west-3": 8008,
        "eu-central-1": 8009,
        "eu-central-2": 8010,
        "eu-north-1": 8011,
        "eu-south-1": 8012,
        "ap-south-1": 8013,
        "ap-northeast-1": 8014,
        "ap-northeast-2": 8015,
        "ap-northeast-3": 8016,
        "ap-southeast-1": 8017,
        "ap-southeast-2": 8018,
        "us-gov-east-1": 8019,
        "us-gov-west-1": 8020,
    }
)

#: Partition → DNS suffix (botocore data/partitions.json). Other partitions have other certificate authorities than
#: those in the image.
_SUFFIXES: Final[Mapping[str, str]] = MappingProxyType({"aws": "amazonaws.com", "aws-us-gov": "amazonaws.com"})


class Endpoint(NamedTuple):
    """Where a key's region answers."""

    region: str
    host: str


def endpoint(key_arn: str) -> Endpoint:
    """Return the one endpoint that may answer for a key.

    Args:
        key_arn: matches `mrgc.wire.headers.KEY_ARN`.

    Raises:
        KeyAccessError: the image does not know the key's region, or the region is of another partition.
    """
    match = KEY_ARN.fullmatch(key_arn)
    if match is None or match["region"] not in PROXY_PORTS or match["partition"] != _partition(match["region"]):
        raise KeyAccessError("key is in a region that this image does not serve")
    return Endpoint(match["region"], f"kms.{match['region']}.{_SUFFIXES[match['partition']]}")


def replica(key_arn: str, region: str) -> str | None:
    """Return the ARN that a multi-Region key's replica has in a region; None where it can have none.

    AWS: KMS Developer Guide, "Multi-Region keys": related keys share id and key material, so what one has encrypted the
    others decrypt; each has a policy of its own.

    Args:
        key_arn: matches `mrgc.wire.headers.KEY_ARN`.
        region: another than the key's, of the same partition, that this image serves.
    """
    match = KEY_ARN.fullmatch(key_arn)
    if match is None or not match["key"].startswith("mrk-") or region == match["region"]:
        return None
    if region not in PROXY_PORTS or _partition(region) != match["partition"]:
        return None
    return f"arn:{match['partition']}:kms:{region}:{match['account']}:key/{match['key']}"


def proxy_port(host: str) -> int:
    """Return the vsock port on the parent whose proxy leads to `host`.

    Raises:
        KeyAccessError: `host` was not made by `endpoint`.
    """
    port = PROXY_PORTS.get(host.removeprefix("kms.").partition(".")[0])
    if port is None:
        raise KeyAccessError("no proxy leads to this host")
    return port


def _partition(region: str) -> str:
    return "aws-us-gov" if region.startswith("us-gov-") else "aws"
