"""What is read of a live key: answers of KMS that are whole, in pages, cut off, or refused."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, Final

import pytest

from mrgc.client_settings import AwsAccess
from mrgc.errors import KeyAccessError, KeyBusyError
from mrgc.policy_review import Grant
from mrgc.tenant_kms import TenantKms
from tests.policy.terms import KEY, OTHER, SERVICE

PAGES: Final[list[dict[str, Any]]] = [
    {
        "Grants": [{"GranteePrincipal": OTHER, "Operations": ["GenerateDataKey", "Decrypt"]}],
        "Truncated": True,
        "NextMarker": "second",
    },
    {"Grants": [{"GranteePrincipal": SERVICE, "Operations": []}, {}], "Truncated": False},
]


@contextlib.contextmanager
def kms_that_says(*answers: object, status: int = 200) -> Iterator[tuple[TenantKms, list[dict[str, Any]]]]:
    """A client of a server that gives these answers, one after the other; yields the requests beside it."""
    waiting = list(answers)
    requests: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            requests.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            body = json.dumps(waiting.pop(0) if len(waiting) > 1 else waiting[0]).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/x-amz-json-1.1")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        access = AwsAccess("AKIA", "secret", kms_endpoint=f"http://127.0.0.1:{server.server_port}")
        with contextlib.closing(TenantKms(KEY, access)) as kms:
            yield kms, requests
        server.shutdown()
        thread.join()


def test_the_live_policy_is_returned_as_it_is() -> None:
    """The text of the default policy, byte for byte."""
    with kms_that_says({"Policy": '{ "Statement": [] }', "PolicyName": "default"}) as (kms, requests):
        assert kms.policy() == '{ "Statement": [] }'
    assert requests == [{"KeyId": KEY, "PolicyName": "default"}]


def test_grants_are_read_to_the_last_page() -> None:
    """A grant on the second page is as good as one on the first."""
    with kms_that_says(*PAGES) as (kms, requests):
        assert kms.grants() == [Grant(OTHER, ("Decrypt", "GenerateDataKey")), Grant(SERVICE, ()), Grant("", ())]
    assert requests == [{"KeyId": KEY}, {"KeyId": KEY, "Marker": "second"}]


@pytest.mark.parametrize("answer", [{}, {"Truncated": False}])
def test_an_answer_that_was_cut_off_is_no_clean_bill(answer: dict[str, Any]) -> None:
    """An empty success has no grants and no policy in it, and proves neither."""
    with kms_that_says(answer) as (kms, _), pytest.raises(KeyBusyError):
        kms.grants()
    with kms_that_says(answer) as (kms, _), pytest.raises(KeyBusyError):
        kms.policy()


def test_pages_that_never_end_do_end() -> None:
    """A server that repeats its marker is not followed for ever."""
    with kms_that_says(PAGES[0]) as (kms, _), pytest.raises(KeyBusyError):
        kms.grants()


def test_a_refusal_is_an_error_of_key_access() -> None:
    """GetKeyPolicy is not answered across accounts."""
    refusal = {"__type": "AccessDeniedException", "message": "not you"}
    with kms_that_says(refusal, status=400) as (kms, _), pytest.raises(KeyAccessError):
        kms.policy()
    with kms_that_says(refusal, status=400) as (kms, _), pytest.raises(KeyAccessError):
        kms.grants()
