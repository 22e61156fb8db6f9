"""Which SQS queues an MRGC_BROKER_URL means: https://sqs.eu-west-1.amazonaws.com/111122223333/mrgc-{queue}. Pure.

May import: the standard library, mrgc.errors, mrgc.wire. Called by celeryconfig.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

from mrgc.errors import ConfigError
from mrgc.wire.queue_urls import parse_sqs

_PLACE = "{queue}"


class SqsBroker(NamedTuple):
    """Celery's queues at SQS."""

    #: For kombu: sqs://host[:port], without credentials.
    url: str
    is_secure: bool
    #: As the host name says; None leaves it to boto3's own settings.
    region: str | None
    #: Celery's name of each queue to its URL.
    queues: dict[str, str]


def parse_broker(url: str, names: Sequence[str]) -> SqsBroker:
    """Parse an MRGC_BROKER_URL that `is_sqs`.

    Args:
        url: with {queue} in the name.
        names: of Celery's queues.

    Raises:
        ConfigError: no queue URL, or one without {queue}.
    """
    queues = {name: url.replace(_PLACE, name) for name in names}
    try:
        if _PLACE not in url.rpartition("/")[2]:
            raise ConfigError("the queue's name has no place for Celery's")
        parsed = [parse_sqs(queue) for queue in queues.values()]
    except ConfigError as err:
        raise ConfigError(
            "MRGC_BROKER_URL is neither a Redis URL nor an SQS queue URL such as "
            "https://sqs.REGION.amazonaws.com/ACCOUNT/mrgc-{queue}"
        ) from err
    parts = urlsplit(url)
    return SqsBroker(f"sqs://{parts.netloc}", parts.scheme == "https", parsed[0].region, queues)
