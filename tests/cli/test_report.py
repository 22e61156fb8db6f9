"""Exit codes, error lines and progress, and how the command behaves towards terminals, pipes and signals."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mrgc import errors
from mrgc.cli_report import EPILOG, GRAVITY, ExitCode, exit_code_of, gravest, print_error
from mrgc.errors import BY_CODE, MrgcError
from mrgc.spool import MEMORY_BYTES, SealedSpool, SpooledJob
from tests.cli.transcript import Transcript

EXIT_CODES = {
    errors.InputFileError: 9,
    errors.ConfigError: 10,
    errors.QueueUnavailable: 11,
    errors.StoreUnavailable: 11,
    errors.KeyBusyError: 11,
    errors.KeyAccessError: 12,
    errors.ResultMissing: 7,
    errors.ResultRefused: 8,
}


@pytest.mark.parametrize("cls", BY_CODE.values(), ids=BY_CODE.keys())
def test_every_error_has_its_exit_code(cls: type[MrgcError]) -> None:
    """The errors that a tenant can do something about have codes of their own; the others are internal."""
    error = cls() if cls is errors.AuthenticationError else cls("text")
    assert exit_code_of(error) == EXIT_CODES.get(cls, 1)


def test_the_gravest_ending_decides() -> None:
    """A forged result outweighs all; ok needs every job to be ok."""
    assert gravest({ExitCode.OK, ExitCode.PARTIAL, ExitCode.NOT_AUTHENTIC}) is ExitCode.NOT_AUTHENTIC
    assert gravest({ExitCode.OK}) is ExitCode.OK
    assert gravest(set()) is ExitCode.OK
    assert len(GRAVITY) == len(set(GRAVITY))


def test_the_help_lists_every_exit_code() -> None:
    """Each code is in the table with its meaning."""
    assert [int(number) for number in re.findall(r"^ +(\d+)  \w", EPILOG, re.MULTILINE)] == list(range(13))


def test_an_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the text holds, an error is one line."""
    print_error(errors.ConfigError("first\nsecond\r\n  third"))
    assert capsys.readouterr() == ("", "mrgc: config: first second third\n")


def test_the_spool_returns_what_it_took_in_order_and_overflows_to_a_nameless_file(tmp_path: Path) -> None:
    """More than its memory goes to the disk, to a file that no one else can open and that ends with the process."""
    jobs = [SpooledJob(bytes([index]) * (MEMORY_BYTES // 4), index, index + 1) for index in range(6)]
    with SealedSpool(tmp_path / "state") as spool:
        for job in jobs:
            spool.add(job)
        assert list((tmp_path / "state").iterdir()) == []
        assert len(spool) == 6
        assert list(spool) == jobs


def test_a_spool_without_a_folder_is_named(tmp_path: Path) -> None:
    """A file in the folder's place ends with its path."""
    (tmp_path / "state").write_text("")
    with pytest.raises(errors.ConfigError, match="MRGC_STATE"):
        SealedSpool(tmp_path / "state")


def test_help_imports_no_client() -> None:
    """Help and usage errors do not wait for boto3, redis and obstore."""
    heavy = ["boto3", "botocore", "redis", "obstore", "rich", "celery", "torch"]
    script = f"import sys, mrgc.cli; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def terminal_output(primary: int) -> str:
    """Everything that a process wrote to its terminal, after it has closed it."""
    seen = b""
    while True:
        try:
            chunk = os.read(primary, 65_536)
        except OSError:  # EIO: the last writer has closed the terminal
            chunk = b""
        if not chunk:
            return seen.decode()
        seen += chunk


def test_the_bar_is_drawn_on_a_terminal_and_never_into_the_output(transcript: Transcript) -> None:
    """With stderr on a terminal and stdout in a pipe, the bar goes to the one and the ids to the other."""
    (transcript.folder / "texts.txt").write_text("one\ntwo\n")
    primary, secondary = pty.openpty()
    process = subprocess.Popen(
        ["mrgc", "submit", "texts.txt", "--items-per-job", "1"],
        cwd=transcript.folder,
        env=transcript.env | {"TERM": "xterm"},
        stdout=subprocess.PIPE,
        stderr=secondary,
        text=True,
    )
    os.close(secondary)
    screen = terminal_output(primary)
    os.close(primary)
    output, _ = process.communicate(timeout=50)
    assert process.returncode == 0, screen
    assert re.fullmatch(r"([0-9a-f]{32}\n){2}", output)
    assert "sealed" in screen
    assert "sent" in screen
    assert not re.search(r"[0-9a-f]{32}", screen)


def test_an_interrupted_wait_ends_without_a_traceback(transcript: Transcript) -> None:
    """Ctrl-C ends the wait with 130, the way shells expect it."""
    (transcript.folder / "texts.txt").write_text("one\ntwo\n")
    transcript.run("mrgc submit texts.txt --items-per-job 1 > ids\nservice answer 0")
    with subprocess.Popen(
        ["bash", "-c", "exec mrgc wait - < ids"],
        cwd=transcript.folder,
        env=transcript.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        first = process.stdout.readline()  # the wait for the other job goes on
        process.send_signal(signal.SIGINT)
        output, said = process.communicate()
    assert re.fullmatch(r"[0-9a-f]{32} ok\n", first)
    assert (process.returncode, output, said) == (130, "", "")


def test_a_reader_that_goes_away_ends_the_command_quietly(transcript: Transcript) -> None:
    """`| head -1` leaves neither a traceback nor a message."""
    (transcript.folder / "texts.txt").write_text("text\n" * 500)
    transcript.run("mrgc submit texts.txt --items-per-job 1 | head -1\nstdout '^[0-9a-f]{32}$'\n! stderr .")


#: The high-water mark of this program alone: getrusage would count that of the process that started it.
_PEAK = """
import sys, mrgc.cli
sys.argv = ["mrgc", "submit", "texts.txt"]
try:
    mrgc.cli.main()
finally:
    sys.stderr.write(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
"""


def peak_bytes(transcript: Transcript, lines: int) -> int:
    """Submit a file of 1 KiB lines, and return the most memory that the command used."""
    with (transcript.folder / "texts.txt").open("w") as file:
        file.writelines("x" * 1023 + "\n" for _ in range(lines))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _PEAK],
        cwd=transcript.folder,
        env=transcript.env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.count("\n") == -(-lines // 16)
    return int(done.stderr) * 1024


def test_memory_does_not_grow_with_the_file(transcript: Transcript) -> None:
    """A file of 64 MiB needs little more than the spool's 16 MiB beyond what a small file needs."""
    small, large = peak_bytes(transcript, 16), peak_bytes(transcript, 65_536)
    assert large - small < 2 * MEMORY_BYTES


def test_help_waits_for_no_library_that_only_commands_need(transcript: Transcript) -> None:
    """--help answers at once: it loads no AWS, Redis or object store client."""
    env = transcript.env | {"PYTHONPROFILEIMPORTTIME": "1"}
    done = subprocess.run(["mrgc", "--help"], env=env, capture_output=True, text=True, check=True)
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "mrgc" in loaded
    assert not loaded & {"boto3", "botocore", "redis", "obstore"}
