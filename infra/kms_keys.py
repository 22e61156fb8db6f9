"""Keys of the one-machine KMS: their material, their policies, and the ciphertexts made under them.

A key is one file, replaced durably, so a SIGKILL at any moment loses no key and no policy that was acknowledged.
Called by `infra.kms_service`. May import: the standard library, cryptography, mrgc.errors, infra.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import threading
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from infra.durable_file import replace_file
from infra.key_policy import Policy, parse_policy
from mrgc.errors import ConfigError

_BLOB_VERSION: Final = b"\x01"
_NONCE_BYTES: Final = 12
_KEY_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Key:
    """One symmetric KMS key with its policy text."""

    arn: str
    policy: str
    created_s: float
    multi_region: bool
    description: str
    material: bytes = field(repr=False)
    #: Of a replica: the region of the multi-Region key that it was made from. Empty: there is none.
    primary_region: str = ""

    @property
    def key_id(self) -> str:
        """Return the last part of the ARN."""
        return self.arn.rpartition("/")[2]

    @property
    def region(self) -> str:
        """Return the region of the ARN."""
        return self.arn.split(":")[3]

    @property
    def account(self) -> str:
        """Return the account of the ARN."""
        return self.arn.split(":")[4]

    @property
    def primary_arn(self) -> str:
        """Return the ARN that related multi-Region keys have in common: that of the key they were made from."""
        return in_region(self.arn, self.primary_region or self.region)

    def replica(self, region: str, *, policy: str, created_s: float, description: str) -> Key:
        """Return a replica: the same key id and material, and everything else its own (AWS: KMS API, ReplicateKey)."""
        return replace(
            self,
            arn=in_region(self.arn, region),
            policy=policy,
            created_s=created_s,
            description=description,
            primary_region=self.region,
        )

    def parsed_policy(self) -> Policy:
        """Return the policy in the form that `infra.key_policy` evaluates."""
        return parse_policy(self.policy)

    def seal(self, plaintext: bytes, context: Mapping[str, str]) -> bytes:
        """Return a CiphertextBlob: version ‖ length of key id ‖ key id ‖ nonce ‖ AES-256-GCM ciphertext and tag."""
        key_id = self.key_id.encode()
        nonce = os.urandom(_NONCE_BYTES)
        sealed = AESGCM(self.material).encrypt(nonce, plaintext, self._aad(context))
        return _BLOB_VERSION + bytes([len(key_id)]) + key_id + nonce + sealed

    def open(self, blob: bytes, context: Mapping[str, str]) -> bytes:
        """Open a CiphertextBlob made by `seal` under this key and context.

        Raises:
            ValueError: another key, another context, or damaged bytes.
        """
        at = 2 + len(self.key_id)
        try:
            return AESGCM(self.material).decrypt(
                blob[at : at + _NONCE_BYTES], blob[at + _NONCE_BYTES :], self._aad(context)
            )
        except InvalidTag as err:
            raise ValueError("ciphertext does not open") from err

    def _aad(self, context: Mapping[str, str]) -> bytes:
        """Bind ARN and context; JSON of sorted pairs is unambiguous whatever characters they hold."""
        return json.dumps([self.primary_arn, sorted(context.items())]).encode()


def in_region(arn: str, region: str) -> str:
    """Return the ARN of the related key in another region."""
    parts = arn.split(":")
    parts[3] = region
    return ":".join(parts)


def key_id_of(blob: bytes) -> str:
    """Return the key id that a CiphertextBlob names; ValueError if it is not one of ours."""
    if blob[:1] != _BLOB_VERSION or len(blob) < 2:
        raise ValueError("not a ciphertext of this service")
    return blob[2 : 2 + blob[1]].decode("ascii")


class KeyStore:
    """All keys, in memory and in one folder. Safe for concurrent use."""

    def __init__(self, directory: Path) -> None:
        """Read every key of the folder.

        Raises:
            ConfigError: a file is not a key; serving without it would look like data loss.
        """
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._directory = directory
        self._lock = threading.Lock()
        found = map(_read, sorted(directory.glob("*.json")))
        self._keys = {(key.key_id, key.region): key for key in found}

    def create(self, key: Key) -> None:
        """Keep a new key; it exists once this returns."""
        self._store(key)

    def get(self, key_id: str, region: str) -> Key | None:
        """Return a key by id and region, or None."""
        return self._keys.get((key_id, region))

    def related(self, key_id: str) -> list[Key]:
        """Return the keys of an id: one, or a multi-Region key and its replicas, in the order of their regions."""
        return [self._keys[name] for name in sorted(self._keys) if name[0] == key_id]

    def put_policy(self, key: Key, policy: str) -> None:
        """Replace a key's policy; the new one is in force, and on disk, once this returns."""
        self._store(replace(key, policy=policy))

    def _store(self, key: Key) -> None:
        fields = asdict(key) | {"material": base64.b64encode(key.material).decode()}
        with self._lock:
            name = f"{key.key_id}.{key.region}.json" if key.primary_region else f"{key.key_id}.json"
            replace_file(self._directory / name, json.dumps(fields).encode())
            self._keys[key.key_id, key.region] = key


def new_key_id(*, multi_region: bool) -> str:
    """Return a fresh key id in KMS's form."""
    return f"mrk-{secrets.token_hex(16)}" if multi_region else str(uuid.uuid4())


def new_material() -> bytes:
    """Return a fresh AES-256 key."""
    return os.urandom(_KEY_BYTES)


def _read(path: Path) -> Key:
    try:
        fields = json.loads(path.read_text())
        return Key(**fields | {"material": base64.b64decode(fields["material"], validate=True)})
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise ConfigError(f"key file of the one-machine KMS: {path.name}") from err
