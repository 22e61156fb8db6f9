"""`python -m worker.engine` as a process beside a real enclave: what the intake and an auditor see of it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from infra import process_memory, tiny_model
from mrgc.errors import BY_CODE, Action, MrgcError
from mrgc.wire import frames, strict_cbor
from tests.engine.host import MODEL, EngineProcess, Host, Intake
from tests.waiting import until
from worker import engine_protocol
from worker.engine.hardening import ERASING_ALLOCATOR
from worker.engine_protocol import HEALTHY, WAITING, Served
from worker.models.base import Tokens
from worker.models.registry import Registry

_SOCKET = re.compile(r"socket:\[([0-9]+)\]")


def sockets_of(pid: int) -> set[str]:
    """Inodes of the sockets that a process holds."""
    links = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        # A descriptor may be gone again by the time it is looked at, this listing's own among them.
        with contextlib.suppress(FileNotFoundError):
            links.append(str(path.readlink()))
    return {match[1] for match in map(_SOCKET.fullmatch, links) if match}


def sockets_of_family(pid: int, *families: str) -> set[str]:
    """Inodes of all sockets of these families in the network namespace of a process."""
    inodes = set()
    for family in families:
        table = Path(f"/proc/{pid}/net/{family}")
        lines = table.read_text().splitlines()[1:] if table.exists() else []
        column = 6 if family == "unix" else 9
        inodes |= {line.split()[column] for line in lines}
    return inodes


def test_the_first_message_describes_the_engine(calm_engine: EngineProcess, calm_host: Host, served: Registry) -> None:
    """Models with digests, the enclave's boot, the cap on results."""
    model = served.find(MODEL)
    with Intake(calm_engine.path) as intake, calm_host.caller() as caller:
        assert intake.ready.models == {MODEL: engine_protocol.ModelCard(model.digest, 64, tiny_model.MAX_TOKENS)}
        assert intake.ready.boot == caller.health().boot
        assert intake.ready.max_result_bytes == 33_554_432


def test_it_serves_jobs_as_the_model_would(calm_engine: EngineProcess, calm_host: Host, served: Registry) -> None:
    """Through the whole process, the embeddings are those of the model, to the bit, job by job."""
    model = served.find(MODEL)
    texts = [[f"text number {number}", "another one"] for number in range(20)]
    jobs = [calm_host.job(each) for each in texts]
    with Intake(calm_engine.path) as intake:
        outcomes = intake.run(jobs)
    for job, outcome, inputs in zip(jobs, outcomes, texts, strict=True):
        rows = [each.ids for each in model.tokenise(inputs) if isinstance(each, Tokens)]
        assert calm_host.embeddings(job, outcome).tobytes() == np.asarray(model.forward(rows)).tobytes()


def test_several_batches_in_flight_are_all_answered(calm_engine: EngineProcess, calm_host: Host) -> None:
    """Two connections, many batches each, every job served once."""
    with Intake(calm_engine.path) as first, Intake(calm_engine.path) as second:
        sent: dict[tuple[Intake, int], list[bytes]] = {}
        for intake in (first, second) * 4:
            jobs = [calm_host.job([f"{len(sent)} {place}"]) for place in range(5)]
            sent[intake, intake.send(jobs)] = jobs
        for intake in (first, second):
            mine = {number: jobs for (owner, number), jobs in sent.items() if owner is intake}
            answers = intake.receive({number: len(jobs) for number, jobs in mine.items()})
            for number, jobs in mine.items():
                for job, outcome in zip(jobs, answers[number], strict=True):
                    assert calm_host.result(job, outcome)[0].status == "ok"


def test_it_has_no_inet_socket(calm_engine: EngineProcess, calm_host: Host) -> None:
    """The process that holds plaintext cannot reach a network: all its sockets are unix sockets."""
    with Intake(calm_engine.path) as intake:
        intake.run([calm_host.job()])
        pid = calm_engine.process.pid
        held = sockets_of(pid)
        inet = ("tcp", "tcp6", "udp", "udp6", "udplite", "udplite6", "raw", "raw6", "icmp", "icmp6", "packet")
        assert held
        assert held & sockets_of_family(pid, *inet) == set()
        assert held <= sockets_of_family(pid, "unix")


def test_the_check_for_inet_sockets_would_see_one() -> None:
    """The tables are read right: a socket of this process shows in them."""
    with socket.create_server(("127.0.0.1", 0)):
        assert sockets_of(os.getpid()) & sockets_of_family(os.getpid(), "tcp")


def test_its_socket_file_is_for_its_user_and_group(calm_engine: EngineProcess) -> None:
    """Nobody else on the host can send it jobs."""
    assert stat.S_IMODE(calm_engine.path.stat().st_mode) == 0o660


def test_it_can_leave_no_core_file(calm_engine: EngineProcess) -> None:
    """Statement 8: a crash writes no plaintext to disk."""
    limits = Path(f"/proc/{calm_engine.process.pid}/limits").read_text()
    assert re.search(r"^Max core file size +0 +0 ", limits, re.MULTILINE)


def test_hardening_makes_a_process_undumpable() -> None:
    """prctl(PR_GET_DUMPABLE) says 0, so ptrace and /proc/PID/mem are root's alone."""
    program = "from worker.engine.hardening import *; import sys; forbid_dumps(); sys.exit(ctypes.CDLL(None).prctl(3))"
    before = program.replace("forbid_dumps();", "")
    assert subprocess.run([sys.executable, "-c", before], check=False, timeout=60).returncode == 1
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may read what /proc says of an undumpable process")
def test_no_mapping_of_it_would_be_in_a_dump(calm_engine: EngineProcess) -> None:
    """Statement 8: a core pattern that is a pipe ignores the limit; the filter leaves it nothing to write."""
    assert int(Path(f"/proc/{calm_engine.process.pid}/coredump_filter").read_text(), 16) == 0


def test_memory_is_locked_where_no_limit_stands_in_the_way() -> None:
    """It says what it did: pages are locked if it could lift the limit, and none are if it could not."""
    program = (
        "from worker.engine.hardening import forbid_swap; import re; is_locked = forbid_swap(); x = bytearray(9**7);"
        "text = open('/proc/self/status').read(); print(is_locked, int(re.search(r'VmLck:\\s+(\\d+)', text)[1]) > 0)"
    )
    said, is_so = subprocess.check_output([sys.executable, "-c", program], text=True, timeout=60).split()
    assert said == is_so


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may read the memory of an undumpable process")
@pytest.mark.parametrize("words", [0, 10, 25, 2_000])
def test_texts_do_not_outlive_their_batch(calm_engine: EngineProcess, calm_host: Host, words: int) -> None:
    """Short and long texts of served, cut and failed jobs: nowhere in the engine's memory once they are answered."""
    canary = f"canary{os.urandom(12).hex()}"
    texts = [f"{place} {canary} " + "ordinary words " * words for place in range(16)]
    jobs = [
        calm_host.job(texts),
        calm_host.job(texts, parameters={"truncate": True}),
        calm_host.job(texts, items=17),
        calm_host.sealed(b'{"inputs": ["%s' % canary.encode()),
        calm_host.sealed(strict_cbor.encode({"inputs": texts}), type="application/cbor", items=16),
    ]
    with Intake(calm_engine.path) as intake:
        assert all(isinstance(outcome, Served) for outcome in intake.run(jobs))
    pid = calm_engine.process.pid
    until(lambda: not process_memory.find(pid, [canary.encode()]), within_s=10, what="the texts are gone")


def test_it_starts_anew_under_an_allocator_that_overwrites(calm_engine: EngineProcess) -> None:
    """The settings that the test above depends on hold whatever the unit file says."""
    # glibc cuts the variable at its first colon once it has read it.
    environ = Path(f"/proc/{calm_engine.process.pid}/environ").read_bytes()
    assert {name.encode() for name in ERASING_ALLOCATOR} <= {each.partition(b"=")[0] for each in environ.split(b"\0")}


def test_sigterm_answers_what_was_taken_and_exits_with_zero(engine: EngineProcess, host: Host) -> None:
    """A drain loses nothing: batches that were read are answered, then the socket ends."""
    with Intake(engine.path) as intake:
        jobs = {}
        for _ in range(3):
            batch = [host.job(["the text " * 20] * 16) for _ in range(20)]
            jobs[intake.send(batch)] = batch
        with Intake(engine.path) as other:
            until(lambda: other.health().counters["batches"] == 3, within_s=30, what="all batches are read")
        engine.process.send_signal(signal.SIGTERM)
        answers = intake.receive({number: len(batch) for number, batch in jobs.items()})
        assert all(isinstance(outcome, Served) for outcomes in answers.values() for outcome in outcomes)
        with pytest.raises(frames.ConnectionClosed):
            frames.recv(intake.sock)
    assert engine.process.wait(30) == 0
    with pytest.raises(OSError, match="refused"):
        Intake(engine.path)


def test_a_restart_of_the_enclave_loses_no_job(engine: EngineProcess, host: Host) -> None:
    """Each job in flight ends as a result or as a code that brings it back; afterwards all are served again."""
    with Intake(engine.path) as intake, Intake(engine.path) as other:
        jobs = {}
        for number in range(6):
            batch = [host.job([f"{number} {place}"] * 8) for place in range(30)]
            jobs[intake.send(batch)] = batch
            if number == 2:
                host.boot()
        answers = intake.receive({number: len(batch) for number, batch in jobs.items()})
        for number, batch in jobs.items():
            for job, outcome in zip(batch, answers[number], strict=True):
                if isinstance(outcome, MrgcError):
                    assert BY_CODE[outcome.code].action is Action.RETRY
                else:
                    assert host.result(job, outcome)[0].status == "ok"
        until(lambda: other.health().status == HEALTHY, within_s=30, what="healthy again")
        job = host.job(["afterwards"])
        assert host.embeddings(job, intake.run([job])[0]).shape == (1, 64)


def test_without_an_enclave_it_says_so_and_gives_jobs_back(engine: EngineProcess, host: Host) -> None:
    """The intake learns the reason from health, and the code from each job."""
    host.shut_down()
    with Intake(engine.path) as intake:
        until(lambda: intake.health().status == WAITING, within_s=30, what="waiting")
        assert intake.health().reason == "enclave does not listen"
        (outcome,) = intake.run([host.job()])
        assert isinstance(outcome, MrgcError)
        assert outcome.code == "enclave_unreachable"


def send_garbage(intake: Intake) -> None:
    """Send a frame whose header is no CBOR."""
    intake.sock.sendall(b"\x00\x00\x00\x08\x00\x00\x00\x04\xff\xff\xff\xff")


def send_unknown_op(intake: Intake) -> None:
    """Ask for an operation that does not exist."""
    frames.send(intake.sock, frames.encode("stop", 1, {}))


def send_empty_run(intake: Intake) -> None:
    """Ask to run no jobs."""
    frames.send(intake.sock, frames.encode("run", 1, {"model": MODEL}))


def send_oversize(intake: Intake) -> None:
    """Announce a frame over the limit."""
    intake.sock.sendall((frames.MAX_FRAME_BYTES + 1).to_bytes(4, "big"))


def ensure_dropped(intake: Intake) -> None:
    """Read until the engine ends the connection; it may say why in one frame before."""
    answers = []
    with contextlib.suppress(ConnectionError):
        while True:
            answers.append(frames.recv(intake.sock))
    assert [answer.header.keys() for answer in answers] in ([], [{"code"}])


@pytest.mark.parametrize("misbehave", [send_garbage, send_unknown_op, send_empty_run, send_oversize])
def test_a_peer_that_breaks_the_protocol_loses_its_connection_only(
    calm_engine: EngineProcess, calm_host: Host, misbehave: Callable[[Intake], None]
) -> None:
    """The others are served on."""
    with Intake(calm_engine.path) as good, Intake(calm_engine.path) as bad:
        misbehave(bad)
        ensure_dropped(bad)
        assert isinstance(good.run([calm_host.job()])[0], Served)


def test_a_peer_that_leaves_before_its_answer_harms_nobody(calm_engine: EngineProcess, calm_host: Host) -> None:
    """A killed intake's batches are computed for nothing, and the next intake is served."""
    with Intake(calm_engine.path) as leaving:
        before = leaving.health().counters["jobs_ok"]
        leaving.send([calm_host.job(["x"] * 50) for _ in range(20)])
    with Intake(calm_engine.path) as intake:
        assert isinstance(intake.run([calm_host.job()])[0], Served)
        until(lambda: intake.health().counters["jobs_ok"] >= before + 21, within_s=30, what="all are computed")


def crowd_in(crowd: contextlib.ExitStack, path: Path) -> None:
    """Connect as often as the engine takes it, and once more."""
    for _ in range(40):
        crowd.enter_context(Intake(path))


def test_connections_beyond_the_bound_are_turned_away(calm_engine: EngineProcess, calm_host: Host) -> None:
    """A local process of the group cannot take the engine's threads; those who leave make room."""
    with contextlib.ExitStack() as crowd, pytest.raises(ConnectionError):
        crowd_in(crowd, calm_engine.path)

    def is_served() -> bool:
        try:
            with Intake(calm_engine.path) as intake:
                return isinstance(intake.run([calm_host.job()])[0], Served)
        except ConnectionError:
            return False

    until(is_served, within_s=30, what="room for an intake")


def test_its_logs_hold_no_text_and_no_key(engine: EngineProcess, host: Host) -> None:
    """Statement 8: lines are JSON with allowed fields; a payload, its error and the token never appear."""
    canary = "canary-text-of-a-tenant"
    with Intake(engine.path) as intake:
        intake.run(
            [host.job([canary]), host.sealed(b'{"inputs": ["%s"' % canary.encode()), host.job([canary], items=2)]
        )
    engine.process.send_signal(signal.SIGTERM)
    assert engine.process.wait(30) == 0
    lines = engine.log.read_text().splitlines()
    events = [json.loads(line)["event"] for line in lines]
    assert {"engine ready", "enclave connected", "engine stopped"} <= set(events)
    assert canary not in engine.log.read_text()
    assert host.token_file.read_bytes().hex() not in engine.log.read_text()


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"MRGC_MODELS": "/nonexistent"}, "MRGC_MODELS"),
        ({"MRGC_ENGINE": "unix:/nonexistent/engine.sock"}, "socket"),
        ({"MRGC_MAX_BATCH_TOKENS": "64"}, "MRGC_MAX_BATCH_TOKENS"),
    ],
)
def test_it_does_not_start_with_a_wrong_setting(
    tmp_path: Path, models: Path, settings: dict[str, str], complaint: str
) -> None:
    """Exit code 2 and one line that names the variable, before any job is taken."""
    sound = {
        "MRGC_ENCLAVE": f"unix:{tmp_path}/enclave.sock",
        "MRGC_TOKEN_FILE": str(tmp_path / "token"),
        "MRGC_MODELS": str(models),
    }
    started = EngineProcess(tmp_path, **(sound | settings))
    with started.running():
        assert started.process.wait(60) == 2
    assert complaint in json.loads(started.log.read_text().splitlines()[-1])["reason"]
