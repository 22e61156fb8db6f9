"""The envelope: whatever a broker's JSON says, kombu sees the right types, and the transport's own delivery only."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from celery import Celery
from hypothesis import given
from hypothesis import strategies as st
from kombu import Connection
from kombu.transport.virtual import Message

import tasks
from tasks.envelope import delivered
from tests.tasks import crafted

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_PROPERTIES = st.dictionaries(
    st.sampled_from(["body_encoding", "delivery_info", "delivery_tag", "correlation_id", "priority", "reply_to"]),
    _JSON | st.just("base64"),
)
_MESSAGES = st.fixed_dictionaries(
    {},
    optional={
        "body": _JSON,
        "headers": _JSON,
        "content-type": _JSON,
        "content-encoding": _JSON,
        "properties": _PROPERTIES | _JSON,
    },
)


@given(_MESSAGES | _JSON)
def test_kombu_takes_whatever_was_sent(found: object) -> None:
    """The message is made without an error, under our tag, and goes back to the queue that it came from."""
    envelope = delivered(found, queue="control", tag="ours")
    with Connection("memory://") as connection, connection.channel() as channel:  # type: ignore[no-untyped-call]
        message = Message(envelope, channel=channel)  # type: ignore[no-untyped-call]
    assert message.delivery_tag == "ours"
    assert message.delivery_info == {"exchange": "", "routing_key": "control"}
    assert isinstance(message.headers, dict)
    assert isinstance(message.body, (str, bytes))


def test_what_celery_sends_is_seen_as_it_was_sent() -> None:
    """Headers, body and encodings of a call pass unchanged."""
    sent: Any = crafted.envelope(*crafted.call("tasks.infer", "job"))
    envelope = delivered(sent, queue="infer", tag="t", sqs_queue="u")
    for part in ("body", "headers", "content-type", "content-encoding"):
        assert envelope[part] == sent[part]
    assert envelope["properties"]["body_encoding"] == "base64"
    assert envelope["properties"]["delivery_info"]["sqs_queue"] == "u"
    assert base64.b64decode(envelope["body"])


@pytest.mark.parametrize("scheme", ["redis", "rediss", "sqs"])
def test_every_scheme_has_our_transport_and_keeps_its_tls(scheme: str) -> None:
    """Whoever imports the application gets the transports that no message ends; rediss:// still means TLS."""
    assert isinstance(tasks.app, Celery)
    connection = Connection(f"{scheme}://host:6379/1")  # type: ignore[no-untyped-call]
    transport: type = connection.get_transport_cls()  # type: ignore[no-untyped-call]
    assert transport.__module__ == f"tasks.{'sqs' if scheme == 'sqs' else 'redis'}_transport"
    assert bool(connection.ssl) is (scheme == "rediss")
