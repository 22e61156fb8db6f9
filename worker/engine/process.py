"""Composition of the engine: settings, models, two connections to the enclave, the pipeline, the socket.

It opens no inet socket and writes no file. May import: the standard library, structlog, torch, mrgc, worker. Called by
worker.engine.__main__ once the process is hardened.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Final

import structlog
import torch

from mrgc.errors import ConfigError, MrgcError
from mrgc.wire.addresses import listen, parse_address
from worker import logs
from worker.engine.counters import Counters
from worker.engine.enclave_client import EnclaveClient
from worker.engine.opening import Opener
from worker.engine.pipeline import Pipeline
from worker.engine.scrubbing import Scrubber
from worker.engine.sealing import Sealer
from worker.engine.server import BACKLOG, SOCKET_MODE, Server
from worker.engine.tokeniser_pool import TokeniserPool, derive_processes
from worker.engine_protocol import ModelCard, Ready
from worker.models import registry
from worker.models.overlap import Overlapping
from worker.settings import EngineSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from worker.models.registry import Registry

STOPPED: Final = 0
FAULT: Final = 1
CANNOT_START: Final = 2

#: Token budget by kind of device where none is set. A GPU takes a few thousand tokens as fast as it is told to.
_BUDGET_TOKENS: Final = {"cpu": 4_096, "cuda": 32_768}


def run(environ: Mapping[str, str], *, load: Callable[..., Registry] = registry.load) -> int:
    """Serve until SIGTERM or SIGINT; return the exit code.

    Args:
        environ: this process's environment.
        load: returns the models to serve, called as `worker.models.registry.load`; only another composition root hands
            in another.
    """
    logs.configure("engine")
    try:
        settings = EngineSettings.from_env(environ)
        if settings.threads:
            torch.set_num_threads(settings.threads)
        models = load(
            settings.models,
            device=settings.device,
            dtype=settings.dtype,
            memory_bytes=settings.model_memory_bytes,
            handlers=settings.model_handlers,
        )
        budget_tokens = settings.max_batch_tokens or _BUDGET_TOKENS[torch.device(settings.device).type]
        _ensure_budget(models, budget_tokens)
        for model in models:
            if isinstance(model, Overlapping):
                model.warm_up(budget_tokens)
        return _serve(settings, models, budget_tokens)
    except (MrgcError, OSError) as error:
        reason = str(error) if isinstance(error, MrgcError) else "socket cannot be listened on"
        structlog.get_logger().critical("engine cannot start", reason=reason)
        return CANNOT_START


def _serve(settings: EngineSettings, models: Registry, budget_tokens: int) -> int:
    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    counters = Counters()
    tokenisers = TokeniserPool(
        models, processes=_tokenisers(settings), on_death=lambda: counters.add(tokeniser_deaths=1)
    )
    pipeline = _pipeline(settings, models, budget_tokens, Scrubber(models, counters), tokenisers)
    cards = {model.name: ModelCard(model.digest, model.dimensions, model.max_tokens) for model in models}
    listener = listen(parse_address(settings.engine), backlog=BACKLOG, mode=SOCKET_MODE)
    server = Server(listener, pipeline, lambda: Ready(cards, pipeline.boot(), settings.max_body_bytes))
    pipeline.start()
    server.start()
    # What was made so far stays; a scrub looks at what came after.
    gc.collect()
    gc.freeze()
    structlog.get_logger().info("engine ready", models=sorted(cards), device=settings.device)
    ending.wait()
    server.stop()
    pipeline.drain()
    tokenisers.close()
    server.close()
    structlog.get_logger().info("engine stopped")
    return STOPPED


def _pipeline(
    settings: EngineSettings, models: Registry, budget_tokens: int, scrubber: Scrubber, tokenisers: TokeniserPool
) -> Pipeline:
    enclave = parse_address(settings.enclave)
    opening, sealing = (EnclaveClient(enclave, settings.token_file) for _ in range(2))
    return Pipeline(
        Opener(opening, models, max_body_bytes=settings.max_body_bytes, tokenise=tokenisers.tokenise),
        Sealer(sealing, max_body_bytes=settings.max_body_bytes),
        scrubber,
        budget_tokens=budget_tokens,
        on_failure=_end_at_once,
    )


def _tokenisers(settings: EngineSettings) -> int:
    if settings.tokeniser_processes is not None:
        return settings.tokeniser_processes
    devices = torch.cuda.device_count() if torch.device(settings.device).type == "cuda" else 0
    return derive_processes(cores=len(os.sched_getaffinity(0)), devices=devices)


def _end_at_once() -> None:
    # Other stages may be stuck behind the dead one, and a faulted device must not be asked to clean up.
    sys.stderr.flush()
    os._exit(FAULT)


def _ensure_budget(models: Registry, budget_tokens: int) -> None:
    if any(model.max_tokens > budget_tokens for model in models):
        raise ConfigError("MRGC_MAX_BATCH_TOKENS does not hold one input of every model")
