"""The real console command, run as a user runs it, against real servers: each script of testdata/ is one test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.transcript import Transcript

SCRIPTS = sorted((Path(__file__).parent / "testdata").glob("*.txt"))


@pytest.mark.parametrize("script", SCRIPTS, ids=[path.stem for path in SCRIPTS])
def test_the_command_does_what_the_transcript_says(script: Path, transcript: Transcript) -> None:
    """Every line of the script comes true: exit codes, output, errors, and what the service received."""
    transcript.run(script.read_text())


@pytest.mark.parametrize(
    "script",
    ["[1] true", "false", "echo a\nstdout b", "echo a\n! stdout a", "service received 1", "echo Traceback >&2"],
)
def test_a_transcript_that_is_not_true_fails(script: str, transcript: Transcript) -> None:
    """The runner itself notices exit codes, output and the service's part."""
    with pytest.raises(AssertionError, match="line "):
        transcript.run(script)
