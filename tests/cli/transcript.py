"""Scripts of commands with their outcomes, after the manner of age's cmd/age/testdata.

# a comment
mrgc submit texts.txt > ids     a command line for bash; it must exit 0
[9] mrgc submit bad.jsonl       it must exit 9
stdout '^[0-9a-f]{32}$'         the last command's output matches, line by line
! stderr .                      it does not match
env NAME=VALUE                  for the commands that follow
service answer 0                the service seals and stores the result of the first job in the queue
-- texts.txt --                 the rest of the script is files
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from mrgc.client import Client
from tests.client.tenants import Tenant

_FILE: Final = re.compile(r"^-- (\S+) --\n", re.MULTILINE)
_EXIT: Final = re.compile(r"\[(\d+)\] ")
COMMAND_S: Final = 50


@dataclass
class Transcript:
    """One run of one script."""

    folder: Path
    env: dict[str, str] = field(repr=False)
    tenant: Tenant
    other_tenant: Tenant
    output: dict[str, str] = field(default_factory=dict)

    def run(self, script: str) -> None:
        """Run a script; fail at the first line that does not come true."""
        commands, *files = _FILE.split(script)
        for name, content in zip(files[::2], files[1::2], strict=True):
            (self.folder / name).write_text(content)
        for number, line in enumerate(commands.splitlines(), start=1):
            try:
                self._line(line.strip())
            except AssertionError as error:
                raise AssertionError(f"line {number}: {line}\n{error}\n{self._shown()}") from error

    def _line(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        if not line or word == "#":
            return
        if word == "env":
            name, _, value = rest.partition("=")
            self.env[name] = value
        elif word == "service":
            verb, *arguments = rest.split()
            SERVICE[verb](self, *arguments)
        elif word in {"stdout", "stderr"}:
            assert self._matches(word, rest), "no match"
        elif word == "!":
            stream, _, pattern = rest.partition(" ")
            assert not self._matches(stream, pattern), "unexpected match"
        else:
            self._command(line)

    def _command(self, line: str) -> None:
        expected = _EXIT.match(line)
        done = subprocess.run(
            ["bash", "-c", line[expected.end() :] if expected else line],
            cwd=self.folder,
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
        self.output = {"stdout": done.stdout, "stderr": done.stderr}
        assert "Traceback" not in done.stderr, "a traceback"
        assert done.returncode == int(expected[1] if expected else 0), f"exit {done.returncode}"

    def _matches(self, stream: str, pattern: str) -> bool:
        (regex,) = shlex.split(pattern)
        return re.search(regex, self.output[stream], re.MULTILINE) is not None

    def _shown(self) -> str:
        return "\n".join(f"[{name}]\n{text}" for name, text in self.output.items())


def _answer(transcript: Transcript, index: str, status: str = "ok", code: str = "") -> None:
    body = {"failed": f'{{"errors":[{{"code":"{code}"}}]}}', "text": "not \x1b[31mjson"}.get(status)
    peer = transcript.tenant.peer
    arguments = [body.encode()] if body else []
    peer.answer(peer.jobs()[int(index)], *arguments, status="ok" if status == "text" else status)


def _tensors(transcript: Transcript, index: str) -> None:
    peer = transcript.tenant.peer
    peer.answer(peer.jobs()[int(index)], b"tensors", type="application/vnd.safetensors")


def _hint(transcript: Transcript, index: str, code: str) -> None:
    peer = transcript.tenant.peer
    peer.put(peer.jobs()[int(index)], code.encode(), suffix="refused")


def _swap(transcript: Transcript, first: str, second: str) -> None:
    peer = transcript.tenant.peer
    jobs = [peer.jobs()[int(index)] for index in (first, second)]
    for job, other in zip(jobs, reversed(jobs), strict=True):
        peer.put(job, peer.seal(other))


def _flip(transcript: Transcript, index: str) -> None:
    peer = transcript.tenant.peer
    job = peer.jobs()[int(index)]
    damaged = bytearray(peer.seal(job))
    damaged[-1] ^= 1
    peer.put(job, bytes(damaged))


def _foreign(transcript: Transcript, index: str) -> None:
    other = transcript.other_tenant
    with Client.from_env(other.env()) as client:
        client.submit(["theirs"])
    peer = transcript.tenant.peer
    peer.put(peer.jobs()[int(index)], other.peer.seal(other.peer.jobs()[-1]))


def _echo(transcript: Transcript, index: str) -> None:
    """Put the sealed job itself where its result belongs."""
    peer = transcript.tenant.peer
    peer.put(peer.jobs()[int(index)], peer.messages()[int(index)][b"job"])


def _standalone(transcript: Transcript, name: str, *, of: str = "own", text: str = "") -> None:
    """Write a standalone object, as the JSON protocol seals answers, into a file of the script's folder."""
    tenant = transcript.other_tenant if of == "other" else transcript.tenant
    (transcript.folder / name).write_bytes(tenant.peer.standalone(text.encode() or b'{"answer": 42}'))


def _received(transcript: Transcript, count: str) -> None:
    messages = transcript.tenant.peer.messages()
    assert len(messages) == int(count), f"{len(messages)} messages"


#: What the service does, by the word in the script.
SERVICE: Final[dict[str, Callable[..., None]]] = {
    "answer": _answer,
    "standalone": _standalone,
    "standalone-of-another": partial(_standalone, of="other"),
    "standalone-text": partial(_standalone, text="not \x1b[31mjson"),
    "tensors": _tensors,
    "hint": _hint,
    "swap": _swap,
    "flip": _flip,
    "foreign": _foreign,
    "echo": _echo,
    "received": _received,
}
