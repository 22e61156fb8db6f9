"""An instance metadata service and an Auto Scaling endpoint on loopback, with the rules of the real ones."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import parse_qs

#: What every instance has.
INSTANCE: Final = {"instance-id": "i-0123456789abcdef0", "placement/region": "eu-west-1"}
SPOT: Final = '{"action": "terminate", "time": "2026-01-01T00:02:00Z"}'
REFUSAL: Final = (
    "<ErrorResponse><Error><Type>Sender</Type><Code>ValidationError</Code>"
    "<Message>No active Lifecycle Action found</Message></Error></ErrorResponse>"
)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def close(self) -> None:
        """Stop answering; new connections are refused."""
        self.shutdown()
        self.server_close()


class Imds:
    """Version 2 only: no path without a token of a PUT, as an instance with HttpTokens=required has it."""

    def __init__(self) -> None:
        #: By path below latest/meta-data.
        self.values: dict[str, str] = dict(INSTANCE)
        #: Tokens that are valid; clear it to expire all.
        self.tokens: set[str] = set()
        #: Paths asked for, with a valid token.
        self.asked: list[str] = []
        self.status: int | None = None
        #: Cleared, requests are read and never answered.
        self.answers = threading.Event()
        self.answers.set()
        self._server = _Server(self._handler())

    @property
    def url(self) -> str:
        """MRGC_IMDS."""
        return self._server.url

    def close(self) -> None:
        """End it."""
        self.answers.set()
        self._server.close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        imds = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                ttl = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
                forwarded = self.headers.get("X-Forwarded-For")
                if self.path != "/latest/api/token" or not ttl.isdecimal() or not 1 <= int(ttl) <= 21_600 or forwarded:
                    self._answer(400, "")
                    return
                token = f"AQAEA{len(imds.tokens)}token=="
                imds.tokens.add(token)
                self._answer(200, token)

            def do_GET(self) -> None:
                if self.headers.get("X-aws-ec2-metadata-token") not in imds.tokens:
                    self._answer(401, "")
                    return
                path = self.path.removeprefix("/latest/meta-data/")
                imds.asked.append(path)
                value = imds.values.get(path)
                self._answer(imds.status or (404 if value is None else 200), value or "")

            def _answer(self, status: int, text: str) -> None:
                imds.answers.wait(30)
                self.send_response(status)
                self.send_header("Content-Type", "text/plain")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_args: object) -> None:
                """Say nothing."""

        return Handler


class AutoScaling:
    """CompleteLifecycleAction of the Query protocol (Amazon EC2 Auto Scaling API Reference); nothing else."""

    def __init__(self) -> None:
        #: Parameters of the completed actions.
        self.completed: list[dict[str, str]] = []
        self.refuses = False
        self._server = _Server(self._handler())

    @property
    def url(self) -> str:
        """For AWS_ENDPOINT_URL_AUTO_SCALING."""
        return self._server.url

    def close(self) -> None:
        """End it."""
        self._server.close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        scaling = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                given: dict[str, Any] = {
                    name: values[0] for name, values in parse_qs(body, strict_parsing=True).items()
                }
                signed = "/eu-west-1/autoscaling/aws4_request" in self.headers.get("Authorization", "")
                known = (given.pop("Action", ""), given.pop("Version", "")) == ("CompleteLifecycleAction", "2011-01-01")
                whole = given.keys() == {
                    "AutoScalingGroupName",
                    "LifecycleHookName",
                    "InstanceId",
                    "LifecycleActionResult",
                }
                if not (signed and known and whole) or scaling.refuses:
                    self._answer(400, REFUSAL)
                    return
                scaling.completed.append(given)
                self._answer(
                    200,
                    '<CompleteLifecycleActionResponse xmlns="http://autoscaling.amazonaws.com/doc/2011-01-01/">'
                    "<CompleteLifecycleActionResult/></CompleteLifecycleActionResponse>",
                )

            def _answer(self, status: int, text: str) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "text/xml")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_args: object) -> None:
                """Say nothing."""

        return Handler
