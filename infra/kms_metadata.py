"""What the one-machine KMS says about a key (AWS: KMS API, KeyMetadata).

Called by `infra.kms_service`. May import: the standard library, infra.kms_keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from infra.kms_keys import Key

ALGORITHM: Final = "SYMMETRIC_DEFAULT"  #: The one key spec and encryption algorithm that is served.


def key_metadata(key: Key, related: Sequence[Key]) -> Mapping[str, Any]:
    """Return the KeyMetadata of a key.

    Args:
        key: the key.
        related: all keys of its id, itself among them.
    """
    metadata: dict[str, Any] = {
        "AWSAccountId": key.account,
        "Arn": key.arn,
        "CreationDate": key.created_s,
        "CustomerMasterKeySpec": ALGORITHM,
        "Description": key.description,
        "Enabled": True,
        "EncryptionAlgorithms": [ALGORITHM],
        "KeyId": key.key_id,
        "KeyManager": "CUSTOMER",
        "KeySpec": ALGORITHM,
        "KeyState": "Enabled",
        "KeyUsage": "ENCRYPT_DECRYPT",
        "MultiRegion": key.multi_region,
        "Origin": "AWS_KMS",
    }
    if key.multi_region:
        metadata["MultiRegionConfiguration"] = {
            "MultiRegionKeyType": "REPLICA" if key.primary_region else "PRIMARY",
            "PrimaryKey": next(_named(each) for each in related if each.arn == key.primary_arn),
            "ReplicaKeys": [_named(each) for each in related if each.arn != key.primary_arn],
        }
    return metadata


def _named(key: Key) -> Mapping[str, str]:
    return {"Arn": key.arn, "Region": key.region}
