"""The rule for Celery's messages: calls as Celery's own producers write them, and nothing beside."""

from __future__ import annotations

import json
from typing import Any

import pytest
from celery import Celery
from hypothesis import given
from hypothesis import strategies as st

from mrgc.errors import FormatError, NotAdmitted
from tasks.plain_call import EMBEDDED, EMPTY_HEADERS, HEADERS, ensure_plain_call
from tests.tasks.crafted import call, celery_calls

TASKS = {"tasks.infer"}


def written(**options: Any) -> tuple[Any, Any]:
    """Headers and body of a call as Celery writes them, seen after JSON."""
    message = Celery().amqp.as_task_v2("an id", "tasks.infer", ("job",), {}, **options)
    headers, body = json.loads(json.dumps([message.headers, message.body]))
    return headers, body


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"countdown": 5, "expires": 60.0},
        {"group_id": "g", "group_index": 3},
        {"headers": {"celery_beat_task": True}},
        {"retries": 2, "root_id": "r", "parent_id": "p"},
        {"ignore_result": True, "callbacks": [], "errbacks": []},
    ],
)
def test_what_celerys_producers_write_is_a_plain_call(options: dict[str, Any]) -> None:
    """Delay, countdown, expiry, group and retry all pass."""
    ensure_plain_call(*written(**options), tasks=TASKS)


@pytest.mark.parametrize(
    "options",
    [
        {"callbacks": [{"task": "t"}]},
        {"errbacks": [{"task": "t"}]},
        {"chain": [{"task": "t"}]},
        {"chord": {"task": "t"}},
        {"time_limit": 5},
        {"shadow": "another name"},
        {"stamped_headers": ["s"], "s": 1},
    ],
)
def test_whatever_asks_for_more_than_a_call_is_refused(options: dict[str, Any]) -> None:
    """Work to send on, limits, other names and stamps are not plain."""
    with pytest.raises(FormatError):
        ensure_plain_call(*written(**options), tasks=TASKS)


@pytest.mark.parametrize("name", sorted(celery_calls("tasks.infer", "job")))
def test_every_crafted_message_is_refused(name: str) -> None:
    """Built-in tasks are nobody's to serve, and the rest is not plain."""
    with pytest.raises((FormatError, NotAdmitted)):
        ensure_plain_call(*celery_calls("tasks.infer", "job")[name], tasks=TASKS)


def test_a_task_of_another_role_is_refused() -> None:
    """An edge worker runs no control task, however plain its call is."""
    with pytest.raises(NotAdmitted):
        ensure_plain_call(*call("tasks.control.purge_expired", "acme"), tasks=TASKS)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_NAMES = st.sampled_from(sorted(HEADERS.keys() | EMPTY_HEADERS | EMBEDDED))


@given(st.dictionaries(_NAMES, _JSON | st.just("tasks.infer")) | _JSON, _JSON)
def test_no_message_makes_the_rule_fail(headers: object, body: object) -> None:
    """Whatever JSON can say is a plain call or one of two errors."""
    try:
        ensure_plain_call(headers, body, tasks=TASKS)
    except (FormatError, NotAdmitted):
        return
    assert isinstance(headers, dict)
    assert headers["task"] == "tasks.infer"


@given(st.dictionaries(_NAMES, _JSON), st.dictionaries(st.sampled_from(sorted(EMBEDDED)), _JSON))
def test_nothing_to_send_on_ever_passes(headers: dict[str, Any], embed: dict[str, Any]) -> None:
    """Of a call that passes, embed and headers hold no callback, chain or chord."""
    good = call("tasks.infer", "job")[0]
    try:
        ensure_plain_call(headers | good, [["job"], {}, embed], tasks=TASKS)
    except FormatError:
        return
    assert not any(embed.values())
    assert not EMBEDDED & headers.keys()
