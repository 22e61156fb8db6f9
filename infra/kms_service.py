"""The operations of the one-machine KMS: authorise by the key's policy, then act.

AWS KMS API Reference, as far as docs/spec.md §7 uses it. The difference from AWS: there is no IAM, so a key made
without a policy belongs to the principal that made it, and CreateKey and GenerateRandom, which no key policy governs,
are open to every principal. Called by `infra.local_kms`. May import: the standard library, mrgc.attest, infra.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from infra.key_policy import AccessRequest, PolicyError, is_allowed, parse_policy
from infra.kms_keys import Key, KeyStore, key_id_of, new_key_id, new_material
from infra.kms_metadata import ALGORITHM, key_metadata
from infra.kms_recipient import Recipient, read_recipient
from infra.kms_wire import KmsFault, Members, access_denied, invalid
from infra.sigv4 import Caller
from mrgc.attest.chain import Root

#: AWS: KMS API, Encrypt, Decrypt and GenerateDataKey.
MAX_PLAINTEXT_BYTES: Final = 4_096
MAX_CIPHERTEXT_BYTES: Final = 6_144
MAX_RANDOM_BYTES: Final = 1_024

_KEY_SPEC_BYTES: Final = {"AES_256": 32, "AES_128": 16}

Answer = Mapping[str, Any]


class KmsService:
    """One service over one key store. Safe for concurrent use."""

    def __init__(
        self, store: KeyStore, root: Root, *, regions: Collection[str], clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._root = root
        self._regions = regions
        self._clock = clock
        self._operations: Mapping[str, Callable[[Members, Caller], Answer]] = {
            "CreateKey": self._create_key,
            "Decrypt": self._decrypt,
            "DescribeKey": self._describe_key,
            "Encrypt": self._encrypt,
            "GenerateDataKey": self._generate_data_key,
            "GenerateRandom": self._generate_random,
            "GetKeyPolicy": self._get_key_policy,
            "ListGrants": self._list_grants,
            "PutKeyPolicy": self._put_key_policy,
            "ReplicateKey": self._replicate_key,
        }

    def is_operation(self, name: str) -> bool:
        """Return whether this service has the operation."""
        return name in self._operations

    def call(self, operation: str, members: Members, caller: Caller) -> Answer:
        """Run one operation for an authenticated caller and return the members of its answer.

        Raises:
            KmsFault: the request is malformed, or refused.
        """
        return self._operations[operation](members, caller)

    # --- keys and their policies ---------------------------------------------------------------------------------

    def _create_key(self, members: Members, caller: Caller) -> Answer:
        members.ensure_only("Policy", "Description", "KeySpec", "KeyUsage", "MultiRegion", "Origin")
        for name, literal in (("KeySpec", ALGORITHM), ("KeyUsage", "ENCRYPT_DECRYPT"), ("Origin", "AWS_KMS")):
            members.ensure_literal(name, literal)
        multi_region = members.flag("MultiRegion")
        key_id = new_key_id(multi_region=multi_region)
        partition, account = caller.principal.arn.split(":")[1], caller.principal.account
        key = Key(
            arn=f"arn:{partition}:kms:{caller.region}:{account}:key/{key_id}",
            policy=members.optional_text("Policy") or _owner_policy(caller.principal.arn),
            created_s=self._clock(),
            multi_region=multi_region,
            description=members.optional_text("Description") or "",
            material=new_material(),
        )
        _ensure_acceptable(key.policy, key, caller)
        self._store.create(key)
        return {"KeyMetadata": self._metadata(key)}

    def _replicate_key(self, members: Members, caller: Caller) -> Answer:
        """Make a related key in another region. Other than AWS's, it is Enabled at once."""
        members.ensure_only("KeyId", "ReplicaRegion", "Policy", "Description")
        region = members.text("ReplicaRegion")
        primary = self._key(members.text("KeyId"), caller)
        _authorise("ReplicateKey", primary, caller)
        if not primary.multi_region or primary.primary_region or region not in self._regions:
            raise KmsFault("UnsupportedOperationException", "not a primary multi-Region key, or not a served region")
        replica = primary.replica(
            region,
            policy=members.optional_text("Policy") or _owner_policy(caller.principal.arn),
            created_s=self._clock(),
            description=members.optional_text("Description") or "",
        )
        _ensure_acceptable(replica.policy, replica, caller)
        if self._store.get(replica.key_id, region) is not None:
            raise KmsFault("AlreadyExistsException", f"the key exists in {region}")
        self._store.create(replica)
        return {"ReplicaKeyMetadata": self._metadata(replica), "ReplicaPolicy": replica.policy}

    def _describe_key(self, members: Members, caller: Caller) -> Answer:
        members.ensure_only("KeyId")
        key = self._key(members.text("KeyId"), caller)
        _authorise("DescribeKey", key, caller)
        return {"KeyMetadata": self._metadata(key)}

    def _get_key_policy(self, members: Members, caller: Caller) -> Answer:
        members.ensure_only("KeyId", "PolicyName")
        members.ensure_literal("PolicyName", "default")
        key = self._key(members.text("KeyId"), caller)
        _authorise("GetKeyPolicy", key, caller)
        return {"Policy": key.policy, "PolicyName": "default"}

    def _put_key_policy(self, members: Members, caller: Caller) -> Answer:
        members.ensure_only("KeyId", "PolicyName", "Policy")
        members.ensure_literal("PolicyName", "default")
        policy = members.text("Policy")
        key = self._key(members.text("KeyId"), caller)
        _authorise("PutKeyPolicy", key, caller)
        _ensure_acceptable(policy, key, caller)
        self._store.put_policy(key, policy)
        return {}

    def _list_grants(self, members: Members, caller: Caller) -> Answer:
        """Answer an empty list: there is no CreateGrant here."""
        members.ensure_only("KeyId", "Limit", "Marker")
        key = self._key(members.text("KeyId"), caller)
        _authorise("ListGrants", key, caller)
        return {"Grants": [], "Truncated": False}

    # --- cryptography --------------------------------------------------------------------------------------------

    def _encrypt(self, members: Members, caller: Caller) -> Answer:
        members.ensure_only("KeyId", "Plaintext", "EncryptionContext", "EncryptionAlgorithm")
        members.ensure_literal("EncryptionAlgorithm", ALGORITHM)
        context = members.context()
        plaintext = members.blob("Plaintext", highest=MAX_PLAINTEXT_BYTES)
        key = self._key(members.text("KeyId"), caller)
        _authorise("Encrypt", key, caller, context=context)
        blob = key.seal(plaintext, context)
        return {"CiphertextBlob": blob, "KeyId": key.arn, "EncryptionAlgorithm": ALGORITHM}

    def _decrypt(self, members: Members, caller: Caller) -> Answer:
        members.ensure_only("CiphertextBlob", "EncryptionContext", "KeyId", "EncryptionAlgorithm", "Recipient")
        members.ensure_literal("EncryptionAlgorithm", ALGORITHM)
        context = members.context()
        blob = members.blob("CiphertextBlob", highest=MAX_CIPHERTEXT_BYTES)
        recipient = self._recipient(members)
        made_under = _key_id_of(blob)
        key = self._key(members.optional_text("KeyId") or self._arn_of(made_under, caller), caller)
        _authorise("Decrypt", key, caller, context=context, recipient=recipient)
        if key.key_id != made_under:
            raise KmsFault("IncorrectKeyException", "the ciphertext was made under another key")
        try:
            plaintext = key.open(blob, context)
        except ValueError as err:
            raise KmsFault("InvalidCiphertextException", "") from err
        return {"KeyId": key.arn, "EncryptionAlgorithm": ALGORITHM, **_plaintext(plaintext, recipient)}

    def _generate_data_key(self, members: Members, caller: Caller) -> Answer:
        members.ensure_only("KeyId", "EncryptionContext", "KeySpec", "NumberOfBytes", "Recipient")
        context = members.context()
        length = _data_key_bytes(members)
        recipient = self._recipient(members)
        key = self._key(members.text("KeyId"), caller)
        _authorise("GenerateDataKey", key, caller, context=context, recipient=recipient)
        data_key = os.urandom(length)
        return {"CiphertextBlob": key.seal(data_key, context), "KeyId": key.arn, **_plaintext(data_key, recipient)}

    def _generate_random(self, members: Members, _: Caller) -> Answer:
        members.ensure_only("NumberOfBytes", "Recipient")
        length = members.count("NumberOfBytes", highest=MAX_RANDOM_BYTES)
        if length is None:
            raise invalid("NumberOfBytes is missing")
        return _plaintext(os.urandom(length), self._recipient(members))

    # --- what operations share -----------------------------------------------------------------------------------

    def _recipient(self, members: Members) -> Recipient | None:
        return read_recipient(members, root=self._root, now_s=self._clock())

    def _key(self, name: str, caller: Caller) -> Key:
        """Find a key by ARN, or by id in the caller's own account; aliases are not served."""
        key = self._store.get(name.rpartition("/")[2], caller.region)
        is_named = key is not None and (
            name == key.arn or (name == key.key_id and key.account == caller.principal.account)
        )
        if key is None or not is_named:
            raise KmsFault("NotFoundException", f"Key '{name}' does not exist")
        return key

    def _arn_of(self, key_id: str, caller: Caller) -> str:
        key = self._store.get(key_id, caller.region)
        if key is None:
            raise KmsFault("InvalidCiphertextException", "")
        return key.arn

    def _metadata(self, key: Key) -> Answer:
        return key_metadata(key, self._store.related(key.key_id))


def _authorise(
    operation: str,
    key: Key,
    caller: Caller,
    *,
    context: Mapping[str, str] | None = None,
    recipient: Recipient | None = None,
) -> None:
    conditions = {f"kms:EncryptionContext:{name}": value for name, value in (context or {}).items()}
    request = AccessRequest(
        principal=caller.principal.arn,
        action=f"kms:{operation}",
        resource=key.arn,
        conditions=conditions | dict(recipient.conditions if recipient else {}),
        is_administrator=caller.principal.is_administrator,
    )
    if not is_allowed(key.parsed_policy(), request):
        raise access_denied(
            f"User: {request.principal} is not authorized to perform: {request.action} on resource: {key.arn}"
        )


def _ensure_acceptable(policy: str, key: Key, caller: Caller) -> None:
    """Refuse a policy that does not parse, or that would lock its author out (AWS: PutKeyPolicy, safety check)."""
    request = AccessRequest(
        caller.principal.arn, "kms:PutKeyPolicy", key.arn, {}, is_administrator=caller.principal.is_administrator
    )
    try:
        keeps_control = is_allowed(parse_policy(policy), request)
    except PolicyError as err:
        raise KmsFault("MalformedPolicyDocumentException", str(err)) from err
    if not keeps_control:
        raise KmsFault(
            "MalformedPolicyDocumentException",
            "The new key policy will not allow you to update the key policy in the future.",
        )


def _key_id_of(blob: bytes) -> str:
    try:
        return key_id_of(blob)
    except ValueError as err:
        raise KmsFault("InvalidCiphertextException", "") from err


def _data_key_bytes(members: Members) -> int:
    spec = members.optional_text("KeySpec")
    length = members.count("NumberOfBytes", highest=MAX_RANDOM_BYTES)
    if (spec is None) == (length is None) or (spec is not None and spec not in _KEY_SPEC_BYTES):
        raise invalid("exactly one of KeySpec (AES_256, AES_128) and NumberOfBytes is needed")
    return _KEY_SPEC_BYTES[spec] if spec is not None else length or 0


def _plaintext(value: bytes, recipient: Recipient | None) -> Answer:
    """Return the secret part of an answer: encrypted for the enclave, or plain, never both."""
    return {"Plaintext": value} if recipient is None else {"CiphertextForRecipient": recipient.wrap(value)}


def _owner_policy(principal: str) -> str:
    statement = {"Effect": "Allow", "Principal": {"AWS": principal}, "Action": "kms:*", "Resource": "*"}
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})
