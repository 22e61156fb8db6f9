"""Servers around a tenant, as in tests/client, and the real command in a directory of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.cli.transcript import Transcript
from tests.client.conftest import kms, other_tenant, redis_queue, tenant
from tests.client.tenants import REPOSITORY, Tenant

__all__ = ["kms", "other_tenant", "redis_queue", "tenant"]

#: What pip makes of `mrgc = "mrgc.cli:main"`, for this checkout and this interpreter.
_CONSOLE_SCRIPT = """#!/bin/sh
exec "{python}" -c 'import sys; sys.argv[0] = "mrgc"; from mrgc.cli import main; main()' "$@"
"""


@pytest.fixture
def transcript(tenant: Tenant, other_tenant: Tenant, tmp_path: Path) -> Transcript:
    """A directory with a tenant's environment, in which a script of commands runs."""
    script = tmp_path / "bin" / "mrgc"
    script.parent.mkdir()
    script.write_text(_CONSOLE_SCRIPT.format(python=sys.executable))
    script.chmod(0o755)
    (tmp_path / "work").mkdir()
    env = dict(os.environ) | tenant.env() | {"PYTHONPATH": str(REPOSITORY), "PYTHONWARNINGS": "error"}
    env["PATH"] = f"{script.parent}{os.pathsep}{env['PATH']}"
    return Transcript(tmp_path / "work", env, tenant, other_tenant)
