"""What kombu may see of a message that a broker gave: every part of its type, and none that is not the sender's to say.

kombu reads a message before any consumer can look at it, and believes it: a body that is no JSON, or a table where it
expects another type, ends the worker; on Redis the sender's `delivery_tag` is the key of a table that all messages
share, and a `routing_key` of the sender's decides where a message goes back to. Here the parts that deliver a message
are replaced by the transport's own, and a message of wrong types becomes an empty one, which tasks.plain_call refuses.
Pure.

May import: the standard library. Called by the transports.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any, Final

#: What kombu's own loader raises on text that is no JSON, too deep, or claims types that its values do not have.
LOAD_ERRORS: Final = (ValueError, TypeError, AttributeError, ArithmeticError, RecursionError)


def delivered(found: object, *, queue: str, tag: str, **delivery_info: object) -> dict[str, Any]:
    """Return a message as kombu takes it in.

    Args:
        found: the broker's JSON, decoded; anything else stands for text that was no JSON.
        queue: it came from; where it goes back to if it is handed back.
        tag: names this delivery, unique among all.
        delivery_info: what the transport wants to find again at the ack.

    Returns:
        The parts that kombu reads. A message of wrong types has neither headers nor body.
    """
    given = found if isinstance(found, dict) else {}
    properties = given.get("properties")
    properties = properties if isinstance(properties, dict) else {}
    is_whole = _has_body(given.get("body"), properties.get("body_encoding")) and isinstance(given.get("headers"), dict)
    info = {"exchange": "", "routing_key": queue, **delivery_info}
    return {
        "body": given["body"] if is_whole else "",
        "content-type": _text(given, "content-type"),
        "content-encoding": _text(given, "content-encoding"),
        "headers": given["headers"] if is_whole else {},
        "properties": {
            "body_encoding": properties.get("body_encoding") if is_whole else None,
            "correlation_id": _text(properties, "correlation_id"),
            "delivery_info": info,
            "delivery_mode": 2,
            "delivery_tag": tag,
            "priority": 0,
        },
    }


def _has_body(body: object, encoding: object) -> bool:
    if type(body) is not str or encoding not in (None, "base64"):
        return False
    try:
        return encoding is None or base64.b64decode(body, validate=True) is not None
    except (binascii.Error, ValueError):
        return False


def _text(given: Mapping[str, object], name: str) -> str | None:
    value = given.get(name)
    return value if type(value) is str else None
