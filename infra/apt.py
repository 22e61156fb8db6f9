"""Debian packages into a folder, never into the system: apt with sources, lists and status of its own.

The mirror is the machine's configured one, so proxies and credentials of its apt configuration apply; suites that the
machine does not have (backports, unstable) are asked for there without the machine's own apt ever seeing them. Called
by `infra.eif.fetch` and `infra.vm_tools`. May import: the standard library, mrgc.errors.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from mrgc.errors import ConfigError

UPDATE_S: Final = 300.0
DOWNLOAD_S: Final = 1_800.0

_KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_INSTALLED: Final = re.compile(r"^Inst (\S+) \((\S+) ", re.MULTILINE)
_SHOWN_CHARS: Final = 500


class PrivateApt:
    """An apt that knows one list of suites and an empty system.

    Args:
        folder: absolute; where its lists and status lie; made if absent, and private to one process at a time.
        suites: suite → URI of the mirror that has it.
    """

    def __init__(self, folder: Path, suites: dict[str, str]) -> None:
        self._folder = folder
        for name in ("lists/partial", "cache/archives/partial"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "status").write_bytes(b"")
        signed = f"signed-by={_KEYRING}" if _KEYRING.exists() else "trusted=yes"
        lines = [f"deb [arch=amd64 {signed}] {uri} {suite} main\n" for suite, uri in suites.items()]
        (folder / "sources.list").write_text("".join(lines))

    def update(self) -> None:
        """Fetch the suites' lists of packages.

        Raises:
            ConfigError: a list cannot be had.
        """
        self._run("update", "--error-on=any", limit_s=UPDATE_S)

    def closure(self, packages: Iterable[str]) -> list[str]:
        """Return `name=version` of the packages and of all that they depend on, recommendations left out."""
        planned = self._run("install", "--simulate", *packages, limit_s=UPDATE_S)
        return [f"{name}={version}" for name, version in _INSTALLED.findall(planned)]

    def download(self, packages: Iterable[str], *, to: Path) -> list[Path]:
        """Download packages, each given as `name` or `name=version`, without unpacking them.

        Returns:
            The .deb files that were not in `to` before.

        Raises:
            ConfigError: the suites have no such package or version, or it cannot be had.
        """
        before = set(to.glob("*.deb"))
        self._run("download", *packages, limit_s=DOWNLOAD_S, cwd=to)
        return sorted(set(to.glob("*.deb")) - before)

    def _run(self, *arguments: str, limit_s: float, cwd: Path | None = None) -> str:
        settings = {
            "Dir::Etc::sourcelist": self._folder / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Dir::State::lists": self._folder / "lists",
            "Dir::State::status": self._folder / "status",
            "Dir::Cache": self._folder / "cache",
            "APT::Architecture": "amd64",
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "",
            "Debug::NoLocking": "true",
        }
        return _apt_get(["-q"] + [f"-o{name}={value}" for name, value in settings.items()], arguments, limit_s, cwd)


def configured_mirror(suite: str) -> str | None:
    """Return the URI from which this machine's own apt takes a suite, or None if it does not."""
    # Without release information, because apt has it only after an update: on a fresh machine it would name no suite.
    asked = ("indextargets", "--no-release-info", "--format", "$(RELEASE) $(REPO_URI)")
    targets = _apt_get([], asked, UPDATE_S, None)
    return next((words[1] for line in targets.splitlines() if (words := line.split())[:1] == [suite]), None)


def _apt_get(options: list[str], arguments: tuple[str, ...], limit_s: float, cwd: Path | None) -> str:
    try:
        done = subprocess.run(
            ["apt-get", *options, *arguments],
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"apt-get {arguments[0]}: {type(error).__name__}: is this a Debian machine?") from error
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if line.startswith("E:")] or [done.stderr]
        raise ConfigError(f"apt-get {arguments[0]}: {' '.join(errors)[:_SHOWN_CHARS]}")
    return done.stdout
