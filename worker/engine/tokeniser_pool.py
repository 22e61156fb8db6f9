"""Tokenisers in processes of their own, for a device that one core cannot feed.

A text takes a core about 100 µs, and a GPU often less. Each request of the open stage is cut into one share per
process; what is too little to share, and what is not text, is tokenised in the engine itself. So are the shares of a
process that dies: a new one is started, and no job notices. If the text itself kills tokenisers it then kills the
engine, and the intake finds the job that is to blame as it always does.

May import: the standard library, structlog, mrgc.errors, worker.backoff, worker.engine, worker.models. Called by
worker.engine.process.
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import structlog

from mrgc.errors import ConfigError, FormatError
from worker.backoff import Backoff
from worker.engine import tokeniser_frames as frames
from worker.models.tokenizer import utf8

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mrgc.errors import ModelError
    from worker.models.base import Model, Tokens
    from worker.models.tokenizer import Recipe

#: Fewer texts than this per process are not worth the way there and back.
LEAST_TEXTS: Final = 8
#: Cores that are not for tokenisers: open, forward and seal stage, and the processes beside the engine.
OTHER_CORES: Final = 4
START_S: Final = 60.0
#: A megabyte of text takes a tokeniser about a second, and a text of the usual length 0.1 ms; who takes longer than
#: both of these hangs.
ANSWER_S: Final = 30.0
TEXT_S: Final = 0.002
FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 30.0


def derive_processes(*, cores: int, devices: int) -> int:
    """Return how many processes an engine of a host has: its share of the cores that nothing else needs.

    Args:
        cores: that this process may run on.
        devices: of the host, each with an engine; 0 on a host without, whose cores are the device.
    """
    return max(0, cores // devices - OTHER_CORES) if devices else 0


def shares(sizes: Sequence[int], processes: int) -> list[slice]:
    """Cut a request into consecutive, non-empty shares of about equal size, at most one per process."""
    wanted = min(processes, len(sizes) // LEAST_TEXTS)
    total, done, start = sum(sizes), 0, 0
    cut: list[slice] = []
    for end in range(1, len(sizes)):
        done += sizes[end - 1]
        # The next text goes to the share that it is more than half in.
        if len(cut) < wanted - 1 and (2 * done + sizes[end]) * wanted >= 2 * total * (len(cut) + 1):
            cut.append(slice(start, end))
            start = end
    return [*cut, slice(start, len(sizes))] if sizes else []


class TokeniserPool:
    """Running tokeniser processes. Used by one thread.

    Args:
        models: those with a `recipe` are served by the processes, others by themselves.
        processes: how many.
        on_death: called for each process that died.

    Raises:
        ConfigError: a process does not start.
    """

    def __init__(self, models: Iterable[Model], *, processes: int, on_death: Callable[[], None]) -> None:
        self._recipes: dict[Model, Recipe] = {
            model: recipe for model in models if (recipe := getattr(model, "recipe", None)) is not None
        }
        self._on_death = on_death
        recipes = list(self._recipes.values())
        self._processes = [_Process(recipes) for _ in range(processes if recipes else 0)]
        deadline_s = time.monotonic() + START_S
        for process in self._processes:
            if not process.is_ready(within_s=max(0.0, deadline_s - time.monotonic())):
                self.close()
                raise ConfigError("tokeniser process does not start")

    @property
    def pids(self) -> list[int]:
        """Process ids, for supervision and tests."""
        return [process.pid for process in self._processes]

    def tokenise(self, model: Model, inputs: Sequence[object]) -> list[Tokens | ModelError]:
        """Do what `model.tokenise` does, in the processes where that is faster."""
        if model not in self._recipes:
            return model.tokenise(inputs)
        ready = [process for process in self._processes if self._revived(process)]
        if not ready:
            return model.tokenise(inputs)
        texts = {place: text for place, each in enumerate(inputs) if (text := utf8(each)) is not None}
        if len(texts) < LEAST_TEXTS:
            return model.tokenise(inputs)
        cut = shares([len(text) for text in texts.values()], len(ready))
        places = list(texts)
        outcomes = self._shared(model, inputs, [places[share] for share in cut], texts, ready)
        others = [place for place in range(len(inputs)) if place not in texts]
        outcomes |= zip(others, model.tokenise([inputs[place] for place in others]), strict=True)
        return [outcomes[place] for place in range(len(inputs))]

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.end()

    def _shared(
        self,
        model: Model,
        inputs: Sequence[object],
        cut: Sequence[Sequence[int]],
        texts: dict[int, bytes],
        ready: Sequence[_Process],
    ) -> dict[int, Tokens | ModelError]:
        recipe = list(self._recipes).index(model)
        asked = list(zip(ready, cut, strict=False))
        for process, places in asked:
            process.ask(recipe, [texts[place] for place in places])
        texts.clear()
        outcomes: dict[int, Tokens | ModelError] = {}
        for process, places in asked:
            answer = process.answer(len(places), max_tokens=self._recipes[model].max_tokens)
            if answer is None:
                structlog.get_logger().warning("tokeniser died", pid=process.pid, exit_code=process.exit_code)
                self._on_death()
                answer = model.tokenise([inputs[place] for place in places])
            outcomes |= zip(places, answer, strict=True)
        return outcomes

    def _revived(self, process: _Process) -> bool:
        """Tell whether a process can be asked; start one that died anew, and leave it out until it is ready."""
        process.start_if_due()
        return process.is_ready(within_s=0.0)


class _Process:
    """One tokeniser process and our end of its socket pair."""

    def __init__(self, recipes: Sequence[Recipe]) -> None:
        self._recipes = recipes
        self._backoff = Backoff(base_s=FIRST_PAUSE_S, cap_s=LONGEST_PAUSE_S)
        self._start_at_s = 0.0
        self._sock: socket.socket | None = None
        self._is_ready = False
        self._start()

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def exit_code(self) -> int | None:
        return self._child.returncode

    def start_if_due(self) -> None:
        """Start again, after a pause that grows with each death."""
        if self._sock is None and time.monotonic() >= self._start_at_s:
            self._start()

    def is_ready(self, *, within_s: float) -> bool:
        """Tell whether it has said that it can be asked, and still lives."""
        if self._sock is None:
            return False
        if not self._is_ready and select.select([self._sock], [], [], within_s)[0]:
            with suppress(OSError, EOFError, FormatError):
                frames.receive_answer(self._sock, count=0, max_tokens=0)
                self._is_ready = True
            if not self._is_ready:
                self._give_up()
        return self._is_ready

    def ask(self, recipe: int, texts: Sequence[bytes]) -> None:
        """Send a request; that the process is gone shows in `answer`."""
        if self._sock is not None:
            self._sock.settimeout(ANSWER_S + TEXT_S * len(texts))
            with suppress(OSError):
                frames.send_request(self._sock, recipe, texts)

    def answer(self, count: int, *, max_tokens: int) -> list[Tokens | ModelError] | None:
        """Wait for the answer; None if the process died or hangs, which it then does no longer."""
        if self._sock is not None:
            try:
                outcomes = frames.receive_answer(self._sock, count=count, max_tokens=max_tokens)
            except (OSError, EOFError, FormatError):
                pass
            else:
                self._backoff.reset()
                return outcomes
        self._give_up()
        return None

    def end(self) -> None:
        """Close the connection, at which the process ends by itself."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        try:
            self._child.wait(ANSWER_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        ours.settimeout(ANSWER_S)
        with theirs:
            # A new program, not a fork of this one: CUDA does not survive a fork, and a fork would inherit plaintext.
            self._child = subprocess.Popen(
                [sys.executable, "-m", "worker.engine.tokeniser_process", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={"PATH": os.defpath, "TOKENIZERS_PARALLELISM": "false"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        self._sock, self._is_ready = ours, False
        with suppress(OSError):
            frames.send_recipes(ours, self._recipes)

    def _give_up(self) -> None:
        """Kill what is left of the process, and plan the next start."""
        if self._sock is not None:
            self._sock.close()
        self._sock, self._is_ready = None, False
        self._child.kill()
        self._child.wait()
        self._start_at_s = time.monotonic() + self._backoff.next_s()
