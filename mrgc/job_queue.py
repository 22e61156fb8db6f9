"""The sending end of a tenant's queue, whichever broker it is at (docs/spec.md §5).

Called by `mrgc.client` and `mrgc.client_parts`. May import: the standard library and the tenant's modules of mrgc.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple, Protocol

MAX_INLINE_BYTES: Final = 524_288  #: docs/spec.md §5: a longer sealed job travels as a claim check.
#: One fsync of the record and one `send` serve this many jobs, or this many bytes.
SEND_JOBS: Final = 64
SEND_BYTES: Final = 4 << 20


class ClaimCheck(NamedTuple):
    """Where the bytes of a long sealed job are."""

    #: s3://bucket/key.
    url: str
    #: Of the whole object; equal to the job's `request`.
    sha256: bytes
    size_bytes: int


class JobQueue(Protocol):
    """One tenant's queue."""

    def send(self, messages: Sequence[bytes | ClaimCheck]) -> None:
        """Append messages.

        A lost reply makes the sender repeat itself, so a message may be in the queue twice. That costs the service time
        and changes nothing: the same sealed job has one result object, create-only (docs/spec.md §4).

        Args:
            messages: sealed jobs of at most 524,288 bytes, or claim checks of longer ones.

        Raises:
            QueueUnavailable: the broker did not confirm; any number of the messages may be in the queue.
        """
        ...

    def close(self) -> None:
        """Close the connections."""
        ...


def batches(sealed_jobs: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Group sealed jobs, as they come, into what one record transaction and one `send` carry."""
    batch: list[bytes] = []
    batch_bytes = 0
    for sealed in sealed_jobs:
        batch.append(sealed)
        batch_bytes += len(sealed)
        if len(batch) == SEND_JOBS or batch_bytes >= SEND_BYTES:
            yield batch
            batch, batch_bytes = [], 0
    if batch:
        yield batch
