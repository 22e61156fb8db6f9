"""tenants.toml: what it may say, and how a running host follows it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mrgc.errors import ConfigError
from tests.intake.sealing import KEY_ARN
from worker.registry import Registry, Tenant, parse_registry

FULL = f"""
[tenants.acme]
weight = 3
key_arns = ["{KEY_ARN}"]
models = ["m", "org/model-2"]
results = "s3://results/acme/"
allowed_results = ["s3://acme-own/out/"]
claim_buckets = ["acme-jobs"]
max_inflight_jobs = 10
"""


def test_a_full_entry_and_the_defaults() -> None:
    """Every field is read; a bare entry admits nothing but is an entry."""
    entries = parse_registry(FULL + "[tenants.globex]\n")
    assert entries["acme"] == Tenant(
        name="acme",
        weight=3,
        key_arns=frozenset({KEY_ARN}),
        models=frozenset({"m", "org/model-2"}),
        results="s3://results/acme/",
        allowed_results=("s3://acme-own/out/",),
        claim_buckets=frozenset({"acme-jobs"}),
        max_inflight_jobs=10,
    )
    globex = entries["globex"]
    assert (globex.weight, globex.max_inflight_jobs, globex.results) == (1, 4_096, None)
    assert not globex.models
    assert not globex.allows_result("s3://acme-own/out/")
    assert entries["acme"].allows_result("s3://acme-own/out/2026/")
    assert not entries["acme"].allows_result("s3://acme-own/other/")


@pytest.mark.parametrize(
    "text",
    [
        "[tenants.acme",
        "[tenant.acme]",
        "tenants = 3",
        "[tenants]\nacme = 3",
        "[tenants.Acme]",
        "[tenants.acme]\nweight = 0",
        "[tenants.acme]\nweight = true",
        "[tenants.acme]\nweigth = 2",
        '[tenants.acme]\nkey_arns = "arn"',
        '[tenants.acme]\nkey_arns = ["arn:aws:kms:eu-west-1:123456789012:alias/x"]',
        '[tenants.acme]\nmodels = ["m@sha256:00"]',
        '[tenants.acme]\nresults = "s3://bucket/no-slash"',
        '[tenants.acme]\nallowed_results = ["file:///"]',
        '[tenants.acme]\nclaim_buckets = ["s3://bucket/"]',
        "[tenants.acme]\nmax_inflight_jobs = 0",
    ],
)
def test_a_wrong_file_is_refused(text: str) -> None:
    """A misspelt key is an error, because ignoring it would admit or refuse what the operator did not mean."""
    with pytest.raises(ConfigError, match="registry"):
        parse_registry(text)


def test_changes_are_followed_and_a_broken_file_is_not(tmp_path: Path) -> None:
    """A change is taken up once, atomic replacement included; a file that became wrong leaves the last good one."""
    file = tmp_path / "tenants.toml"
    file.write_text("[tenants.acme]\n")
    registry = Registry(file)
    assert not registry.refresh()

    new = tmp_path / "new.toml"
    new.write_text("[tenants.beta]\n")  # as long as the first, and within one clock tick of it
    stamp = file.stat()
    os.utime(new, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    new.replace(file)
    assert registry.refresh()
    assert registry.tenants.keys() == {"beta"}

    file.write_text("[tenants.beta\n")
    with pytest.raises(ConfigError):
        registry.refresh()
    assert not registry.refresh()
    assert registry.get("beta") is not None

    file.unlink()
    with pytest.raises(ConfigError):
        registry.refresh()
    file.write_text("[tenants.gamma]\n")
    assert registry.refresh()
    assert registry.get("gamma") is not None


def test_an_absent_or_huge_file_stops_the_start(tmp_path: Path) -> None:
    """The first read must succeed, and is capped."""
    with pytest.raises(ConfigError):
        Registry(tmp_path / "absent.toml")
    huge = tmp_path / "huge.toml"
    huge.write_bytes(b"#" * ((4 << 20) + 1))
    with pytest.raises(ConfigError):
        Registry(huge)
