"""Who may ask this boot of the enclave for what: its token, and whether it serves JSON to all (docs/spec.md §6, §8).

Called by `enclave.operations` and `enclave.json_protocol`. May import: the standard library, mrgc.errors, mrgc.wire.
"""

from __future__ import annotations

import hmac
import threading
from dataclasses import dataclass

from mrgc.errors import TokenError
from mrgc.wire.enclave_protocol import Hello


@dataclass(slots=True)
class Peer:
    """What the enclave knows of the other end of one connection."""

    has_token: bool = False


class Access:
    """The token that the first hello has set, and its wish for the JSON protocol."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._token: bytes | None = None
        self._is_json_open = False

    @property
    def is_locked(self) -> bool:
        """Whether the first hello has come."""
        return self._token is not None

    def serves_json(self, peer: Peer) -> bool:
        """Tell whether `peer` may use the JSON protocol: it has the token, or the first hello opened it to all."""
        return peer.has_token or self._is_json_open

    def hello(self, hello: Hello, peer: Peer) -> None:
        """Take a hello: the first one of this boot sets the token and the JSON switch, the others must match.

        Raises:
            TokenError: not the token of the first hello.
        """
        with self._lock:
            if self._token is None:
                self._token, self._is_json_open = hello.token, hello.json
        self.present(hello.token, peer)

    def present(self, token: bytes, peer: Peer) -> None:
        """Take a token that cannot be the first one.

        Raises:
            TokenError: not the token of the first hello, or there was none yet.
        """
        if self._token is None or not hmac.compare_digest(self._token, token):
            raise TokenError("not the token of the first hello")
        peer.has_token = True
