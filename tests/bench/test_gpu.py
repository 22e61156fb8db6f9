"""`python -m bench.gpu` at a size for a CPU: the code that a CUDA machine will run, its whole path included."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.enclave.stack import REPOSITORY

STAGES = ("model", "copies", "tokenise", "tokenise_alone", "unscrubbed", "scrubbed", "crypto", "path")


@pytest.mark.timeout(300)
def test_every_stage_runs_and_the_report_is_the_last_line(tmp_path: Path) -> None:
    """Each stage has a rate and its ratios; the same report lies in the folder, under the device's name."""
    command = [
        sys.executable,
        "-m",
        "bench.gpu",
        "--device",
        "cpu",
        "--dtype",
        "fp32",
        "--texts",
        "96",
        "--rounds",
        "1",
    ]
    command += ["--tokens", "2048", "--tokenisers", "1", "--models", str(tmp_path / "none"), "--results", str(tmp_path)]
    done = subprocess.run([*command, "--json"], cwd=REPOSITORY, capture_output=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr.decode()
    report = json.loads(done.stdout.splitlines()[-1])
    assert report == json.loads((tmp_path / "gpu-cpu.json").read_text())
    assert report["device"] == "cpu"
    assert len(report["load_average"]) == 3
    (measured,) = report["models"].values()
    assert (measured["texts"], measured["tokenisers"], measured["tokeniser_deaths"]) == (96, 1, 0)
    assert tuple(measured["stages"]) == STAGES
    for name, row in measured["stages"].items():
        assert row["texts_per_s"] > 0
        assert row["vs_model"] > 0
        assert (row["vs_gemm"] is None) == (name == "tokenise_alone")
    assert measured["engine"].keys() == {"open", "forward", "seal", "scrub"}
    assert b"stage" in done.stdout


def test_a_device_that_is_not_there_is_said_so() -> None:
    """Not a traceback of torch's."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.gpu", "--device", "cuda:99"], cwd=REPOSITORY, capture_output=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == b"bench.gpu: MRGC_DEVICE names a device that is not there\n"
