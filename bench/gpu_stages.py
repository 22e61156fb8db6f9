"""What bench.gpu times, each as a function that serves all texts once: from multiplying matrices to the whole path.

Each stage does what the one before it does and one thing more, with the product's own parts:

    gemm      multiplies matrices of the model's shapes, as fast as the device can
    model     the forward passes alone, on ids that lie on the device already
    copies    and the ring: layout, page-locked copies in, copies back
    tokenise  and the tokeniser processes, in a thread of their own before the forward passes
    crypto    the engine process: sealed jobs into its socket, sealed results out; the enclave is a process too
    path      the whole stack: queue, Celery worker, engine, enclave, object store

May import: everything. Called by bench.gpu.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch

from infra.local import read_env
from mrgc.client import Client
from mrgc.errors import MrgcError
from mrgc.payloads import JobOptions
from mrgc.wire import frames
from mrgc.wire.addresses import connect, parse_address
from worker import engine_protocol
from worker.engine.forwarding import IN_FLIGHT
from worker.engine.packer import Packer
from worker.engine.tokeniser_pool import TokeniserPool
from worker.engine_protocol import Health
from worker.models import cuda_layout
from worker.models.base import Ids, Tokens
from worker.models.cuda_attention import DeviceBatch, PaddedView
from worker.models.cuda_embedder import CudaEmbedder
from worker.models.overlap import Flight

WAIT_S: Final = 900.0
#: Job batches in the engine at once: what its queues hold.
IN_ENGINE: Final = 6
#: Texts that are tokenised in one request, as a job batch of the intake has about as many.
TEXTS_PER_REQUEST: Final = 1_024


class Work(NamedTuple):
    """The same work for every stage."""

    texts: list[str]
    #: Rows of ids of each token batch, in order of arrival.
    batches: list[list[Ids]]


def gemm_flops_per_s(device: torch.device, dtype: torch.dtype, *, tokens: int, width: int, inner: int) -> float:
    """Measure the rate of the model's largest product, (tokens, width) × (width, inner); best of several runs."""
    left = torch.randn(tokens, width, device=device).to(dtype)
    right = torch.randn(inner, width, device=device).to(dtype)
    module: Any = torch.get_device_module(device)
    flops = 2 * tokens * width * inner
    repeats = max(1, int(2e13 / flops)) if device.type == "cuda" else 3
    best_s = float("inf")
    for _ in range(5):
        module.synchronize()
        start_s = time.perf_counter()
        for _ in range(repeats):
            torch.nn.functional.linear(left, right)
        module.synchronize()
        best_s = min(best_s, (time.perf_counter() - start_s) / repeats)
    return flops / best_s


class OnDevice:
    """Stages that need the model alone, in this process."""

    def __init__(self, model: CudaEmbedder, pool: TokeniserPool, work: Work, budget_tokens: int) -> None:
        self._model = model
        self._pool = pool
        self._work = work
        self._budget_tokens = budget_tokens
        self._module: Any = torch.get_device_module(model.device)
        self._resident = [self._place(batch) for batch in work.batches]

    @torch.inference_mode()
    def model(self) -> None:
        """Run every batch on ids that are there already; wait once, at the end."""
        for batch in self._resident:
            self._model.compute(batch)
        self._module.synchronize()

    def copies(self) -> None:
        """Launch and collect, as the forward stage does."""
        self._forward(self._work.batches)

    def scrubbed(self) -> None:
        """Do the same with a full scrub after every batch: what tenants that alternate in exclusive mode would cost."""
        for batch in self._work.batches:
            self._model.launch(batch).collect()
            self._model.scrub()

    def unscrubbed(self) -> None:
        """Do the same one batch at a time without scrubs, to compare with `scrubbed`."""
        for batch in self._work.batches:
            self._model.launch(batch).collect()

    def tokenise(self) -> None:
        """Tokenise in one thread, forward in another, two batches between them."""
        ready: queue.Queue[list[Ids] | None] = queue.Queue(2)
        failures: list[BaseException] = []

        def tokenise_all() -> None:
            try:
                for batch in self._tokenised():
                    ready.put(batch)
            except BaseException as error:  # noqa: BLE001  told to the other thread
                failures.append(error)
            finally:
                ready.put(None)

        thread = threading.Thread(target=tokenise_all, daemon=True)
        thread.start()
        self._forward(iter(ready.get, None))
        thread.join()
        if failures:
            raise failures[0]

    def tokenise_alone(self) -> None:
        """Tokenise everything and forward nothing."""
        for _ in self._tokenised():
            pass

    def _tokenised(self) -> Iterator[list[Ids]]:
        packer: Packer[None, Ids] = Packer(self._budget_tokens)
        texts = self._work.texts
        for start in range(0, len(texts), TEXTS_PER_REQUEST):
            outcomes = self._pool.tokenise(self._model, texts[start : start + TEXTS_PER_REQUEST])
            packer.add(None, [(each.ids, len(each.ids)) for each in outcomes if isinstance(each, Tokens)])
            while packer.waiting_tokens >= self._budget_tokens and (batch := packer.next_batch()) is not None:
                yield batch[1]
        while (batch := packer.next_batch()) is not None:
            yield batch[1]

    def _forward(self, batches: Sequence[list[Ids]] | Iterator[list[Ids]]) -> None:
        flights: list[Flight] = []
        for batch in batches:
            if len(flights) == IN_FLIGHT:
                flights.pop(0).collect()
            flights.append(self._model.launch(batch))
        for flight in flights:
            assert all(np.isfinite(output).all() for output in flight.collect())

    def _place(self, rows: list[Ids]) -> DeviceBatch:
        """Lay a batch out on the device, once."""
        runner = self._model.runner
        layout = cuda_layout.lay_out([len(row) for row in rows], runner.sizes, longest=self._model.max_tokens)
        numbers = np.empty(2 * layout.bucket, dtype=np.int32)
        cuda_layout.write_ids(rows, layout, numbers)
        view = None

        def there(array: cuda_layout.Int32s) -> torch.Tensor:
            return torch.from_numpy(array).to(self._model.device)

        if runner.pads:
            padded = cuda_layout.pad(layout)
            view = PaddedView(
                padded.widths, padded.counts, there(padded.gather), there(padded.lengths), there(padded.scatter)
            )
        ids, positions = torch.split(there(numbers), layout.bucket)
        return DeviceBatch(ids, positions, there(layout.bounds), self._model.max_tokens, view)


class OnStack:
    """Stages that need a running stack: its engine's socket, or all of it."""

    def __init__(self, directory: Path, model: str, jobs: Sequence[Sequence[str]]) -> None:
        self._engine = parse_address(f"unix:{directory}/run/engine.sock")
        self._model = model
        self._jobs = jobs
        self.client = Client.from_env(read_env(directory / "env"))

    def sealed(self) -> list[bytes]:
        """Seal all jobs, each time anew: a job that was served once is not served again."""
        options = JobOptions(self._model, truncate=True, accept="application/vnd.safetensors")
        return [self.client.seal(texts, options) for texts in self._jobs]

    def crypto(self, sealed: Sequence[bytes], *, jobs_per_batch: int) -> None:
        """Put job batches through the engine's socket, as many at once as it queues."""
        with connect(self._engine, timeout_s=WAIT_S) as sock:
            frames.recv(sock)
            batches = [sealed[start : start + jobs_per_batch] for start in range(0, len(sealed), jobs_per_batch)]
            outstanding = 0
            for number, batch in enumerate(batches):
                if outstanding == IN_ENGINE:
                    self._receive(sock, batches)
                    outstanding -= 1
                frames.send(sock, engine_protocol.run_request(number, self._model, batch))
                outstanding += 1
            for _ in range(outstanding):
                self._receive(sock, batches)

    def path(self, sealed: Sequence[bytes]) -> None:
        """Send jobs to the queue and wait until every result is stored."""
        jobs = list(self.client.send(sealed))
        states = {outcome.state for outcome in self.client.wait(jobs, timeout_s=WAIT_S)}
        assert states <= {"ok", "partial"}, states

    def health(self) -> Health:
        """Ask the engine for its counters."""
        with connect(self._engine, timeout_s=WAIT_S) as sock:
            frames.recv(sock)
            frames.send(sock, engine_protocol.health_request(0))
            return engine_protocol.parse_health(frames.recv(sock))

    @staticmethod
    def _receive(sock: Any, batches: Sequence[Sequence[bytes]]) -> None:
        frame = frames.recv(sock)
        outcomes = engine_protocol.parse_outcomes(frame, len(batches[frame.id]))
        assert not any(isinstance(outcome, MrgcError) for outcome in outcomes)


def seconds(act: Callable[[], object]) -> float:
    """Time one call."""
    start_s = time.perf_counter()
    act()
    return time.perf_counter() - start_s
