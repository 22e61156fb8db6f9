"""Role credentials for KMS: pushed by the enclave agent, seen by the request signer and by nobody else.

The parent fetches them from its instance role, because an enclave reaches no metadata service. They are worthless for
reading jobs without an attestation document that the tenant's key policy admits (docs/spec.md §7).

Called by `enclave.operations` and `enclave.kms_handler`. May import: the standard library, botocore, mrgc.wire.
"""

from __future__ import annotations

from typing import Final

import botocore.session
from botocore.credentials import CredentialProvider, CredentialResolver, ReadOnlyCredentials
from botocore.credentials import Credentials as SignerCredentials
from botocore.exceptions import NoCredentialsError

from mrgc.wire.enclave_protocol import Credentials

_METHOD: Final = "mrgc-enclave-agent"


class CredentialStore:
    """The newest pushed credentials."""

    def __init__(self) -> None:
        self._current: Credentials | None = None

    def put(self, credentials: Credentials) -> None:
        """Replace the credentials; calls signed from now on use them."""
        self._current = credentials

    def get(self) -> Credentials | None:
        """Return the newest credentials, if any were pushed."""
        return self._current

    def are_valid(self, now_s: float) -> bool:
        """Tell whether unexpired credentials are held."""
        current = self._current
        return current is not None and now_s < current.expires


class _StoredCredentials(SignerCredentials):
    """Looks at the store whenever a request is signed, retries included."""

    def __init__(self, store: CredentialStore) -> None:
        super().__init__("", "", method=_METHOD)
        self._store = store

    def get_frozen_credentials(self) -> ReadOnlyCredentials:
        current = self._store.get()
        if current is None:
            raise NoCredentialsError
        return ReadOnlyCredentials(current.access_key, current.secret_key, current.token or None)


class _StoreProvider(CredentialProvider):
    METHOD = _METHOD

    def __init__(self, store: CredentialStore) -> None:
        super().__init__()
        self._store = store

    def load(self) -> SignerCredentials:
        return _StoredCredentials(self._store)


def signer_session(store: CredentialStore) -> botocore.session.Session:
    """Make a botocore session whose one source of credentials is `store`.

    The default chain would ask the environment, files and the metadata service, all of which the parent controls.
    """
    session = botocore.session.Session()
    session.register_component("credential_provider", CredentialResolver([_StoreProvider(store)]))
    return session
