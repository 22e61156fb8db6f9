"""Messages that try to run code in a worker, each with a name; and what would show that one of them did."""

from __future__ import annotations

import base64
import json
import os
import pickle
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mrgc.wire import strict_cbor
from tests.intake.sealing import seal

#: Longest value that the server of these tests takes is 1 MiB; the cap of a message is 524,288 bytes.
OVER_THE_CAP = 524_289


class Pickled:
    """Unpickling this creates a file."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._marker),)


def call(task: str, *args: object, headers: Mapping[str, object] | None = None, **embed: object) -> tuple[Any, Any]:
    """Headers and body of one Celery message, as protocol 2 has them."""
    task_id = str(uuid.uuid4())
    own = {"lang": "py", "task": task, "id": task_id, "retries": 0, "timelimit": [None, None], "root_id": task_id}
    return own | dict(headers or {}), [list(args), {}, embed]


def signature(task: str, *args: object) -> dict[str, object]:
    """A serialised signature, which Celery would send on."""
    return {"task": task, "args": list(args), "kwargs": {}, "options": {"queue": "infer"}, "immutable": True}


def celery_calls(task: str, *args: object) -> dict[str, tuple[Any, Any]]:
    """Headers and bodies that would run `task` with `args` in a worker with Celery's defaults."""
    wanted = signature(task, *args)
    harmless = "tasks.control.health"
    return {
        "starmap": call("celery.starmap", wanted, [list(args)]),
        "map": call("celery.map", wanted, list(args)),
        "chunks": call("celery.chunks", wanted, [list(args)], 1),
        "group": call("celery.group", [wanted], [], str(uuid.uuid4()), []),
        "chord-unlock": call("celery.chord_unlock", str(uuid.uuid4()), wanted, 0, 0, []),
        "accumulate": call("celery.accumulate", wanted),
        "chain": call("celery.chain", wanted),
        "backend-cleanup": call("celery.backend_cleanup"),
        "link": call(harmless, callbacks=[wanted]),
        "link-error": call("tasks.control.redrive", "nobody", errbacks=[wanted]),
        "chain-in-embed": call(harmless, chain=[wanted]),
        "chord-in-embed": call(harmless, chord=wanted),
        "link-in-headers": call(harmless, headers={"callbacks": [wanted]}),
        "no-embed": (call(harmless)[0] | {"callbacks": [wanted]}, [[], {}, None]),
        "protocol-1": ({}, {"task": task, "id": str(uuid.uuid4()), "args": list(args), "kwargs": {}}),
        "task-is-a-list": call(harmless, headers={"task": [task]}),
        "id-is-a-table": call(harmless, headers={"id": {}}),
        "time-limit": call(harmless, headers={"timelimit": 5}),
        "body-is-a-number": (call(harmless)[0], 5),
    }


def remote_control() -> dict[str, bytes]:
    """Commands of Celery's remote control."""
    return {
        command: json.dumps({"method": command, "arguments": {}, "destination": None, "ticket": "1"}).encode()
        for command in ("shutdown", "pool_restart", "add_consumer")
    }


def envelope(headers: object, body: object, **changes: object) -> dict[str, Any]:
    """One message as kombu lays it on a Redis list."""
    return {
        "body": base64.b64encode(json.dumps(body).encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": headers,
        "properties": {
            "body_encoding": "base64",
            "delivery_info": {"exchange": "", "routing_key": "infer"},
            "delivery_mode": 2,
            "delivery_tag": str(uuid.uuid4()),
            "priority": 0,
        }
        | changes,
    }


def poison(task: str, *args: object) -> dict[str, str]:
    """Texts that end or mislead a Celery worker that reads them as kombu does, and those that would run `task`."""
    whole = envelope(*call(task, *args))
    wrong: dict[str, Any] = {
        "properties-number": whole | {"properties": 5},
        "properties-list": whole | {"properties": [1]},
        "delivery-info-number": envelope({}, [], delivery_info=5),
        "body-number": whole | {"body": 7},
        "body-not-base64": whole | {"body": "%%%"},
        "unknown-encoding": envelope({}, [], body_encoding="rot13"),
        "headers-list": whole | {"headers": [1]},
        "content-type-list": whole | {"content-type": ["x"]},
        "bare-json": {"hello": 1},
        "number": 5,
        "kombu-type": {"properties": {"__type__": "uuid", "__value__": 5}},
        "kombu-type-2": {"properties": {"__type__": "bytes", "__value__": 5}},
    }
    texts = {name: json.dumps(message) for name, message in wrong.items()}
    texts |= {"not-json": "\x7f not json", "deep": "[" * 20_000, "base64-of-nothing": "QUJD"}
    calls = celery_calls(task, *args)
    return texts | {f"call-{name}": json.dumps(envelope(*each)) for name, each in calls.items()}


def tenant_entries(marker: Path, *, job: bytes) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Entries of a tenant's stream that are no job: whatever code could hide in one, and whatever could break a reader.

    Args:
        marker: a path that exists once something unpickles.
        job: a job of another tenant, which no callback may send.
    """
    text = base64.b64encode(job).decode()
    yield "pickle", {"job": pickle.dumps(Pickled(marker))}
    yield "pickle-protocol-0", {"job": pickle.dumps(Pickled(marker), protocol=0)}
    for name, (headers, body) in celery_calls("tasks.infer", text).items():
        yield f"celery-{name}", {"job": json.dumps(envelope(headers, body)).encode()}
    for name, command in remote_control().items():
        yield f"control-{name}", {"job": command}
    yield (
        "pickled-celery-task",
        {"job": json.dumps(envelope({}, []) | {"content-type": "application/x-python-serialize"}).encode()},
    )
    # facts: what ended or confused a Celery worker that read a tenant's messages itself.
    yield "not-json", {"job": b"\x00not json"}
    yield "json-without-envelope", {"job": b'{"hello": 1}'}
    yield "properties-of-a-wrong-type", {"job": json.dumps(envelope({}, []) | {"properties": 5}).encode()}
    yield "own-routing-key", {"job": json.dumps(envelope(*call("tasks.infer", text), routing_key="control")).encode()}
    yield "own-delivery-tag", {"job": json.dumps(envelope(*call("tasks.infer", text), delivery_tag="q:acme")).encode()}
    yield from malformed_entries()


def malformed_entries() -> Iterator[tuple[str, dict[str, bytes]]]:
    """Entries of wrong types, truncated, oversize and deep."""
    good = seal()
    yield "nothing", {"job": b""}
    yield "no-job", {"payload": good}
    yield "job-and-more", {"job": good, "more": b"1"}
    yield "job-and-ref", {"job": good, "ref": b"\xa0"}
    yield "many-fields", {f"field-{index}": b"x" for index in range(2_000)}
    for length in (1, 11, 12, 40, len(good) // 2, len(good) - 1):
        yield f"truncated-to-{length}", {"job": good[:length]}
    yield "trailing-bytes", {"job": good + b"\x00"}
    yield "another-version", {"job": good[:4] + b"\xff" + good[5:]}
    yield "header-longer-than-the-job", {"job": good[:8] + b"\xff\xff\xff\xff" + good[12:]}
    yield "deep-cbor-header", {"job": good[:8] + (4_000).to_bytes(4, "big") + b"\x81" * 4_000}
    yield "oversize", {"job": b"x" * OVER_THE_CAP}
    yield "oversize-sealed", {"job": seal(payload=b"x" * OVER_THE_CAP)}
    yield "ref-is-no-cbor", {"ref": b"\xff"}
    yield "ref-is-deep-cbor", {"ref": b"\x81" * 4_096}
    yield "ref-is-a-bomb", {"ref": b"\xbb" + b"\xff" * 8}
    yield "ref-is-oversize", {"ref": b"\x5a" + b"\xff" * 60_000}
    yield "ref-of-wrong-types", {"ref": strict_cbor.encode({"url": 5, "sha256": "x", "bytes": "y"})}
    url = {"sha256": bytes(32), "bytes": 10}
    for name, value in {"file": "file:///etc/passwd", "http": "http://169.254.169.254/", "s3": "s3://other/x"}.items():
        yield f"ref-to-{name}", {"ref": strict_cbor.encode(url | {"url": value})}
