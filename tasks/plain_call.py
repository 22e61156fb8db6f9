"""Which of Celery's messages a worker of ours runs: plain calls of its own tasks, and nothing else. Pure policy.

Celery's protocol lets a sender add work of its own: callbacks, chords and chains that a worker sends on under its own
broker rights, and built-in tasks (`celery.starmap`, …) that call any other task. Whoever may send one task to a worker
could so run all of them. Here a message is a call or it is refused; what is not known is refused too.

May import: the standard library, mrgc.errors. Called by tasks.consumer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from mrgc.errors import FormatError, NotAdmitted

#: What a call carries, by Celery's protocol 2 (Celery documentation, "Message Protocol"), and the types that each may
#: have. A header outside this table is refused: in a message without an embed, Celery reads `callbacks` from there.
HEADERS: Final[Mapping[str, tuple[type, ...]]] = {
    "lang": (str,),
    "task": (str,),
    "id": (str,),
    "eta": (str, type(None)),
    "expires": (str, type(None)),
    "group": (str, type(None)),
    "group_index": (int, type(None)),
    "retries": (int,),
    "root_id": (str, type(None)),
    "parent_id": (str, type(None)),
    "argsrepr": (str,),
    "kwargsrepr": (str,),
    "origin": (str,),
    "ignore_result": (bool, type(None)),
    "replaced_task_nesting": (int,),
    "redelivered": (bool,),  # kombu's, on a message whose first worker did not end it
    "celery_beat_task": (bool,),  # says that beat is the sender; a worker does nothing with it
}
#: Headers that change how a call runs or is told of; a producer's library writes them empty.
EMPTY_HEADERS: Final = frozenset({"shadow", "timelimit", "stamped_headers", "stamps"})
#: The same in the body's third part: work to be sent on after the call.
EMBEDDED: Final = frozenset({"callbacks", "errbacks", "chain", "chord"})


def ensure_plain_call(headers: object, body: object, *, tasks: Collection[str]) -> None:
    """Check one message before Celery acts on it.

    Args:
        headers: of the message, as the transport gave them.
        body: decoded from JSON.
        tasks: names of the tasks that this worker serves.

    Raises:
        FormatError: not protocol 2, or more than a call.
        NotAdmitted: a call of a task that is not this worker's.
    """
    if not isinstance(headers, dict):
        raise FormatError("headers are no table")
    for name, value in headers.items():
        if not (_is_empty(value) if name in EMPTY_HEADERS else type(value) in HEADERS.get(name, ())):
            raise FormatError("header is unknown, of a wrong type, or asks for more than a call")
    if not headers.keys() >= {"task", "id"}:
        raise FormatError("headers name no task or no id")
    _ensure_plain_body(body)
    if headers["task"] not in tasks:
        raise NotAdmitted("task is not served by this worker")


def _ensure_plain_body(body: object) -> None:
    if not isinstance(body, list) or len(body) != 3:
        raise FormatError("body is not arguments, keywords and embed")
    arguments, keywords, embed = body
    if not isinstance(arguments, list) or not isinstance(keywords, dict) or not isinstance(embed, dict):
        raise FormatError("body is not arguments, keywords and embed")
    if not embed.keys() <= EMBEDDED or any(value not in (None, [], {}) for value in embed.values()):
        raise FormatError("call brings callbacks, a chain or a chord")


def _is_empty(value: object) -> bool:
    # `timelimit` is [None, None] where there is none.
    return value in (None, [], {}, [None, None])
