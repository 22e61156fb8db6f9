"""The import rules of docs/architecture.md §3, the shape of modules, and what an import may do.

import-linter (pyproject.toml) forbids; this file allows: whatever is not listed for a layer is refused, so that a new
dependency is a decision and never an accident.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[1]
PACKAGES: Final = ("mrgc", "enclave", "worker", "tasks", "infra")

#: What every module on the GPU host may import.
HOST: Final = frozenset({"structlog", "mrgc.errors", "mrgc.wire", "worker"})

#: Third-party and own packages that a module may import, by the most specific pattern that fits it. An own package
#: covers its submodules. The standard library is always allowed.
ALLOWED: Final[dict[str, frozenset[str]]] = {
    # rule 1
    "mrgc.errors": frozenset(),
    "mrgc.wire*": frozenset({"cbor2", "cryptography", "mrgc.errors", "mrgc.wire"}),
    "mrgc.attest*": frozenset({"cbor2", "cryptography", "mrgc.errors", "mrgc.wire", "mrgc.attest"}),
    # the tenant's side
    "mrgc*": frozenset({"cbor2", "cryptography", "boto3", "botocore", "redis", "obstore", "typer", "rich", "mrgc"}),
    # rule 2
    "enclave*": frozenset(
        {"cbor2", "cryptography", "boto3", "botocore", "urllib3", "mrgc.errors", "mrgc.wire", "mrgc.attest", "enclave"}
    ),
    # rule 3
    "worker*": HOST,
    "worker.agent_metrics": HOST | {"prometheus_client"},
    "worker.metrics": HOST | {"prometheus_client"},
    "worker.sources.redis_streams": HOST | {"redis"},
    "worker.sources.sqs*": HOST | {"boto3", "botocore"},
    "worker.lifecycle_hook": HOST | {"boto3", "botocore"},
    "worker.sns_notices": HOST | {"boto3", "botocore"},
    "worker.enclave_agent": HOST | {"boto3", "botocore", "prometheus_client"},
    "worker.object_store": HOST | {"obstore"},
    "worker.engine_link": HOST,
    "worker.engine_protocol": HOST,
    "worker.engine*": HOST | {"numpy", "torch"},
    "worker.models*": HOST | {"numpy", "torch", "tokenizers", "safetensors"},
    "worker.models.generator": HOST | {"numpy", "torch", "tokenizers", "vllm"},
    # rule 4
    "tasks*": HOST | {"celery", "kombu", "tasks"},
}
#: rule 5: infra may import everything but Celery's edge; nobody but infra, tests and bench may import infra.
FREE: Final = ("infra*",)

#: What the process that holds plaintext has no use for.
ENGINE_WITHOUT: Final = ("celery", "redis", "boto3", "obstore", "tasks", "enclave", "infra", "worker.intake", "vllm")

#: Modules that a process of this name must not have loaded once its entry module is imported: what a contract on source
#: text cannot see, because a third-party package may bring it along.
NEVER_LOADED: Final[dict[str, tuple[str, ...]]] = {
    "enclave.enclave_app": (
        "celery",
        "redis",
        "torch",
        "obstore",
        "worker",
        "tasks",
        "infra",
        "mrgc.client",
        "mrgc.cli",
    ),
    "worker.engine.__main__": ENGINE_WITHOUT,
    # What __main__ imports once the process is hardened.
    "worker.engine.process": ENGINE_WITHOUT,
    "worker.enclave_agent": ("celery", "torch", "redis", "tasks", "enclave", "infra", "worker.engine"),
    "tasks.intake_step": ("torch", "tokenizers", "enclave", "infra", "worker.engine", "mrgc.client"),
    "mrgc.cli": ("celery", "torch", "worker", "tasks", "enclave", "infra"),
}


def module_name(path: Path) -> str:
    """Return the dotted name of a source file below the root."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


SOURCES: Final = {module_name(path): path for name in PACKAGES for path in sorted((ROOT / name).rglob("*.py"))}

each_module = pytest.mark.parametrize("name", sorted(SOURCES))


def parse(name: str) -> ast.Module:
    """Return the syntax tree of a module of ours."""
    return ast.parse(SOURCES[name].read_text(encoding="utf-8"))


def imports_of(name: str) -> set[str]:
    """Return the modules that a module names in any import statement, wherever it stands."""
    found: set[str] = set()
    for node in ast.walk(parse(name)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from package import module` names the module; `from module import thing` names the module before it.
            found.update(
                full if (full := f"{node.module}.{alias.name}") in SOURCES else node.module for alias in node.names
            )
    tops = {full: full.partition(".")[0] for full in found}
    # boto3's type stubs exist for mypy only: importing one outside TYPE_CHECKING fails wherever dev tools are absent.
    return {full for full, top in tops.items() if top not in sys.stdlib_module_names and "mypy_boto3" not in top}


def is_covered(imported: str, allowed: frozenset[str]) -> bool:
    """Return whether an import is one of the allowed packages or lies in one of them."""
    return any(imported == package or imported.startswith(f"{package}.") for package in allowed)


@each_module
def test_a_module_imports_only_what_its_layer_allows(name: str) -> None:
    """Every import of every module is on its layer's list."""
    if any(fnmatchcase(name, pattern) for pattern in FREE):
        assert not {full for full in imports_of(name) if is_covered(full, frozenset({"celery", "kombu", "tasks"}))}
        return
    patterns = [pattern for pattern in ALLOWED if fnmatchcase(name, pattern)]
    allowed = ALLOWED[max(patterns, key=len)]
    assert {full for full in imports_of(name) if not is_covered(full, allowed)} == set()


def test_the_rules_see_a_wrong_import() -> None:
    """The list refuses what it must: a rule that allows everything would pass unnoticed."""
    assert not is_covered("redis", ALLOWED["worker*"])
    assert not is_covered("mrgc.client", ALLOWED["worker*"])
    assert not is_covered("mrgc.wired", ALLOWED["worker*"])
    assert is_covered("mrgc.wire.frames", ALLOWED["worker*"])


@pytest.mark.parametrize("entry", sorted(NEVER_LOADED))
def test_a_process_loads_nothing_that_is_not_its_own(entry: str) -> None:
    """Importing a process's entry module brings no package of another trust domain with it, through anybody."""
    program = (
        "import importlib, json, sys; importlib.import_module(sys.argv[1]); print(json.dumps(sorted(sys.modules)))"
    )
    loaded = frozenset(json.loads(run_python(program, entry)))
    assert entry in loaded
    assert {name for name in NEVER_LOADED[entry] if name in loaded} == set()


def test_an_import_touches_nothing() -> None:
    """No module of ours reads the environment, starts a thread, opens a socket or touches a device when imported."""
    names = [name for name in sorted(SOURCES) if not name.endswith("__main__")]
    assert json.loads(run_python(WATCHER, *names)) == []


def test_the_watcher_sees_what_an_import_does(tmp_path: Path) -> None:
    """Each thing that an import must not do is noticed when a module does it."""
    (tmp_path / "infra.py").write_text(
        "import os, socket, threading\n"
        "os.environ.get('HOME')\n"
        "os.getenv('HOME')\n"
        "socket.socket().close()\n"
        "open('/dev/null').close()\n"
        "import pathlib; pathlib.Path('/dev/zero').open('rb').close()\n"
        "threading.Thread(target=threading.Event().wait, args=(5,), name='left', daemon=True).start()\n",
        encoding="utf-8",
    )
    seen = json.loads(run_python(WATCHER, "infra", cwd=tmp_path))
    assert seen == [
        "infra: reads $HOME",
        "infra: reads $HOME",
        "infra: socket.__new__",
        "infra: opens /dev/null",
        "infra: opens /dev/zero",
        "infra: leaves thread left",
    ]


@each_module
def test_a_module_fits_a_reader(name: str) -> None:
    """A module has at most 300 lines of code and a function at most 60, docstrings and comments not counted."""
    assert len(code_lines(parse(name))) <= 300
    too_long = {
        node.name: len(code_lines(node))
        for node in ast.walk(parse(name))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and len(code_lines(node)) > 60
    }
    assert too_long == {}


@each_module
def test_a_module_says_what_it_is_for(name: str) -> None:
    """Every module opens with a docstring, and none is marked as unfinished."""
    assert ast.get_docstring(parse(name))
    source = SOURCES[name].read_text(encoding="utf-8")
    assert [word for word in ("TODO", "FIXME", "XXX", "NotImplementedError") if word in source] == []


def code_lines(tree: ast.AST) -> set[int]:
    """Return the numbers of the lines that hold code: neither blank, nor a comment, nor part of a docstring."""
    documented: set[int] = set()
    lines: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            documented.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        elif isinstance(node, (ast.expr, ast.stmt, ast.arg, ast.alias, ast.keyword)):
            lines.update((node.lineno, node.end_lineno or node.lineno))
    return lines - documented


def run_python(program: str, *arguments: str, cwd: Path = ROOT) -> str:
    """Run a program in a fresh interpreter and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=cwd, capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


#: Imports the modules named on its command line and prints, as JSON, what they did besides defining things. Only frames
#: of our own packages count: torch reads its environment and may.
WATCHER: Final = """
import importlib, json, os, sys, threading

ours = ("mrgc", "enclave", "worker", "tasks", "infra")
seen = []


def culprit():
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        top = name.partition(".")[0]
        if top in ours:
            return name
        # The standard library acts for its caller, except when it is itself being imported.
        if top == "importlib" or top not in (*sys.stdlib_module_names, "__main__"):
            return None
        frame = frame.f_back
    return None


def record(what):
    if (name := culprit()) is not None:
        seen.append(f"{name}: {what}")


class Environment(type(os.environ)):
    def __getitem__(self, key):
        record(f"reads ${key}")
        return super().__getitem__(key)

    def __iter__(self):
        record("reads the environment")
        return super().__iter__()


def audit(event, arguments):
    if event in ("socket.__new__", "socket.connect", "socket.bind", "subprocess.Popen", "os.fork"):
        record(event)
    if event == "open" and str(arguments[0]).startswith("/dev/"):
        record(f"opens {arguments[0]}")


os.environ.__class__ = Environment
sys.addaudithook(audit)
for name in sys.argv[1:]:
    before = set(threading.enumerate())
    importlib.import_module(name)
    seen.extend(f"{name}: leaves thread {thread.name}" for thread in set(threading.enumerate()) - before)
print(json.dumps(seen))
"""
