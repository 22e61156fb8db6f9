"""Which SQS queues an MRGC_QUEUE_URL means (docs/spec.md §5).

    https://sqs.eu-west-1.amazonaws.com/111122223333/mrgc-{tenant}    a queue per tenant
    https://sqs.eu-west-1.amazonaws.com/111122223333/mrgc-jobs        one fair queue; MessageGroupId names the tenant

Dead letters are in the queue of the same name with `_dead` behind it: no tenant's name has an underscore, so no
tenant's queue can be another's dead letters.

May import: the standard library, mrgc.errors.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from mrgc.errors import ConfigError

_SCHEMES: Final = ("https", "http")
_PLACE: Final = "{tenant}"
_DEAD: Final = "_dead"
#: Amazon SQS API Reference, "CreateQueue": a queue's name; the longest tenant name and `_dead` must fit beside it.
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,80}")
_LONGEST_TENANT: Final = "t" * 63
#: AWS General Reference, "Amazon SQS endpoints": also the hosts of interface VPC endpoints.
_REGION: Final = re.compile(r"(?:^|\.)sqs(?:-fips)?\.([a-z0-9-]+)\.(?:vpce\.)?(?:amazonaws\.com|api\.aws)(?:\.cn)?$")


def is_sqs(url: str) -> bool:
    """Return whether a queue URL means SQS; redis://, rediss:// and unix:// mean Redis."""
    return urlsplit(url).scheme in _SCHEMES


@dataclass(frozen=True, slots=True)
class SqsQueues:
    """The queues of one deployment."""

    #: scheme://host:port, where their API answers.
    endpoint: str
    #: As the host name says; None where it says nothing, as that of a stand-in.
    region: str | None
    _url: str

    @property
    def is_shared(self) -> bool:
        """Whether all tenants send to one queue, so that MessageGroupId says who sent what."""
        return _PLACE not in self._url

    def queue(self, tenant: str) -> str:
        """Return the URL of the queue that holds a tenant's jobs."""
        return self._url.replace(_PLACE, tenant)

    def dead(self, tenant: str) -> str:
        """Return the URL of the queue that holds a tenant's dead letters."""
        return self.queue(tenant) + _DEAD


def parse_sqs(url: str) -> SqsQueues:
    """Parse an MRGC_QUEUE_URL that `is_sqs`.

    Raises:
        ConfigError: not a queue URL, a FIFO queue, or a name that leaves no room for a tenant's.
    """
    parts = urlsplit(url)
    account, _, name = parts.path.lstrip("/").rpartition("/")
    try:
        plain = not (parts.query or parts.fragment or parts.username or parts.password) and parts.port != 0
    except ValueError:
        plain = False
    longest = name.replace(_PLACE, _LONGEST_TENANT, 1) + _DEAD
    if not plain or not parts.hostname or not account or not _NAME.fullmatch(longest):
        raise ConfigError(
            "MRGC_QUEUE_URL is no SQS queue URL such as https://sqs.REGION.amazonaws.com/ACCOUNT/mrgc-{tenant}; "
            "beside {tenant} and _dead, 12 characters are left for the name, and FIFO queues are not served"
        )
    region = _REGION.search(parts.hostname)
    return SqsQueues(f"{parts.scheme}://{parts.netloc}", region[1] if region else None, url)
