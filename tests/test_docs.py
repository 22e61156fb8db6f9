"""README and docs/: what they name exists, what they show runs, and they say nothing about where they were written."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NamedTuple

import pytest
import typer.main

from mrgc.cli import app
from worker.metrics import Metrics
from worker.registry import Registry

ROOT: Final = Path(__file__).parents[1]
DOCUMENTS: Final = (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")))
#: Product files, which cite the documents and are cited by them.
SOURCES: Final = tuple(
    path
    for name in ("mrgc", "enclave", "worker", "tasks", "infra", "bench", "tests")
    for path in sorted((ROOT / name).rglob("*.py"))
)
SPEC_SECTIONS: Final = frozenset(
    re.findall(r"^## ([0-9]+)\. ", (ROOT / "docs" / "spec.md").read_text(encoding="utf-8"), re.MULTILINE)
)

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


class Block(NamedTuple):
    """A fenced block of a document."""

    document: str
    language: str
    text: str


def blocks(language: str) -> list[Block]:
    """Return the fenced blocks of one language in all documents."""
    pattern = re.compile(rf"^```{language}\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return [
        Block(path.name, language, found) for path in DOCUMENTS for found in pattern.findall(path.read_text("utf-8"))
    ]


def commands() -> list[list[str]]:
    """Return every command line of the shell blocks, in words, without redirections."""
    texts = [block.text.replace("\\\n", " ") for block in blocks("sh")]
    lines = [line for text in texts for line in text.splitlines() if line and not line.startswith("#")]
    return [shlex.split(re.split(r" [<>|] ", line)[0]) for line in lines]


def anchor(heading: str) -> str:
    """Return the fragment that a Markdown viewer gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


@each_document
def test_every_link_leads_somewhere(document: Path) -> None:
    """Each relative link names a file that exists, and its fragment a heading in it."""
    for target in re.findall(r"\]\(([^)#]*)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
        assert not target.startswith("http"), f"{target}: documents stand on their own"
        assert (document.parent / target).exists(), target
    for target, fragment in re.findall(r"\]\(([^)#]*)#([^)]*)\)", document.read_text(encoding="utf-8")):
        headings = re.findall(r"^#+ (.*)$", (document.parent / target).read_text(encoding="utf-8"), re.MULTILINE)
        assert fragment in {anchor(heading) for heading in headings}


@pytest.mark.parametrize("path", [*DOCUMENTS, *SOURCES, ROOT / "Makefile", ROOT / "pyproject.toml"], ids=str)
def test_a_file_says_nothing_about_the_machine_it_was_written_on(path: Path) -> None:
    """No product file names a machine's folders, a package host, or notes that only its authors had."""
    if path == Path(__file__):
        return
    text = path.read_text(encoding="utf-8")
    forbidden = (
        r"/work/(main|shared)|\bshared/(design|facts|vectors)|\bfacts/\w+\.md|/root/|pypi\.org|download\.pytorch"
    )
    assert re.findall(forbidden, text) == []
    assert re.findall(r"\b[Tt]he seed('s)?\b", text) == []


def test_the_readme_stays_short() -> None:
    """A newcomer reads README.md in one sitting: at most 150 lines."""
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_every_decision_is_in_the_index() -> None:
    """docs/adr/README.md lists each record under its own title, and no other."""
    folder = ROOT / "docs" / "adr"
    listed = re.findall(
        r"^\| \[([0-9]{4})\]\((.*?)\) \| (.*?) \|$", (folder / "README.md").read_text("utf-8"), re.MULTILINE
    )
    titles = {path.name: path.read_text("utf-8").splitlines()[0] for path in folder.glob("0*.md")}
    assert {name: f"# {number}: {title}" for number, name, title in listed} == titles


def test_a_citation_names_a_section_of_the_specification() -> None:
    """Every `docs/spec.md §N` in the code is a section that docs/spec.md has."""
    cited = {
        (section, str(path.relative_to(ROOT)))
        for path in SOURCES
        for section in re.findall(r"spec\.md §([0-9]+)", path.read_text(encoding="utf-8"))
    }
    assert cited
    assert {pair for pair in cited if pair[0] not in SPEC_SECTIONS} == set()


def test_every_setting_is_documented_and_every_documented_setting_is_read() -> None:
    """docs/operations.md and the code name the same MRGC_* variables."""
    documented = set(re.findall(r"MRGC_[A-Z0-9_]*[A-Z0-9]", (ROOT / "docs" / "operations.md").read_text("utf-8")))
    product = [path for path in SOURCES if path.is_relative_to(ROOT / "mrgc") or path.is_relative_to(ROOT / "worker")]
    read = {name for path in product for name in re.findall(r"\"(MRGC_[A-Z0-9_]+)\"", path.read_text(encoding="utf-8"))}
    assert documented == read


def test_every_metric_of_the_worker_is_documented() -> None:
    """The table of docs/operations.md §4 and /metrics of the worker name the same metrics."""
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8").split("## 4. ")[1].split("## 5. ")[0]
    rows = re.findall(r"^\| (`mrgc_.*?) \|", text.split("Metrics of the agent")[0], re.MULTILINE)
    documented = {name for row in rows for name in re.findall(r"`(mrgc_\w+)`", row)}
    assert documented == {family.name for family in Metrics().registry.collect()}


def test_every_shown_command_exists() -> None:
    """Make targets, modules and subcommands in shell blocks are there, with the options that are shown."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    subcommands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for words in commands():
        match words:
            case ["make", target, *_]:
                assert target in targets
            case [python, "-m", module, *_] if python.endswith("python"):
                assert find_spec(module) is not None, module
            case [command, name, *rest] if Path(command).name == "mrgc":
                options = {option for parameter in subcommands[name].params for option in parameter.opts}
                assert {word for word in rest if word.startswith("-") and word != "-"} <= options
            case ["./build.sh", *rest]:
                shown = {word for word in rest if word.startswith("-")} - {"--nitro-cli"}
                assert shown <= {*re.findall(r'"(--[a-z-]+)"', (ROOT / "infra/eif/__main__.py").read_text("utf-8"))}
            case [".", _]:
                pass
            case _:
                pytest.fail(f"no check for the shown command {shlex.join(words)}")


def claims() -> set[tuple[str, str]]:
    """Return which test file says that it proves which statement of the threat model."""
    found = set()
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"))
        for node in (module, *module.body):
            if isinstance(node, ast.Module | ast.FunctionDef):
                claim = re.match(r"Statement ([0-9]+)\b", ast.get_docstring(node) or "")
                if claim is not None:
                    found.add((claim[1], str(path.relative_to(ROOT / "tests"))))
    return found


def test_every_statement_of_the_threat_model_names_its_tests() -> None:
    """Each of the twelve has tests that say so, and docs/threat-model.md lists their files and no others."""
    text = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")
    statements = re.findall(r"^([0-9]+)\. ", text.split("## Twelve statements")[1], re.MULTILINE)
    assert statements == [str(number) for number in range(1, 13)]
    rows = re.findall(r"^\| ([0-9]+) \| (.*?) \|", text.split("## Which tests prove them")[1], re.MULTILINE)
    assert [number for number, _ in rows] == statements
    listed = {(number, file) for number, files in rows for file in re.findall(r"`(\S+)`", files)}
    assert listed == claims()


def test_celery_is_shown_with_the_application_that_exists() -> None:
    """Wherever a document runs Celery, -A names its one application, and `inspect` a command that this has."""
    shown = re.findall(
        r"python -m celery -A (\S+) (?:inspect (\w+))?",
        "\n".join(path.read_text(encoding="utf-8") for path in DOCUMENTS),
    )
    assert {application for application, _ in shown} == {"tasks"}
    inspected = {command for _, command in shown if command}
    assert inspected == {"mrgc_health", "mrgc_backlog"}
    source = (ROOT / "tasks" / "control.py").read_text(encoding="utf-8")
    assert inspected == set(re.findall(r'@inspect_command\(name="(\w+)"\)', source))


def test_the_shown_registry_is_accepted(tmp_path: Path) -> None:
    """The tenants.toml of docs/operations.md is one that the worker loads."""
    shown = [block.text for block in blocks("toml")]
    assert shown
    for text in shown:
        file = tmp_path / "tenants.toml"
        file.write_text(text, encoding="utf-8")
        assert set(Registry(file).tenants) == set(tomllib.loads(text)["tenants"])


@pytest.mark.timeout(
    180
)  # one block imports torch, whose types take a minute where `make type` has not read them before
@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.document)
def test_shown_python_is_typed(block: Block, tmp_path: Path) -> None:
    """A Python block passes mypy as it stands, so that its names and arguments exist."""
    file = tmp_path / "shown.py"
    file.write_text(block.text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_the_changelog_puts_security_first() -> None:
    """In each release of CHANGELOG.md the sections come in the agreed order."""
    order = ("Security", "Removed", "Deprecated", "Added", "Changed", "Fixed")
    for release in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").split("\n## ")[1:]:
        sections = re.findall(r"^### (\w+)$", release, re.MULTILINE)
        assert sections == sorted(sections, key=order.index)


def test_the_layout_names_files_that_exist() -> None:
    """Each file that docs/architecture.md §2 names lies somewhere in the folder it is listed under."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    layout = text.split("## 2. Layout")[1].split("```")[1]
    folder = ""
    missing = set()
    for line in layout.splitlines()[1:]:
        if not line.startswith(" "):
            folder = found[1] if (found := re.match(r"(\w+)/ {2,}", line)) else ""
        there = {path.name for path in ((ROOT / folder).rglob("*.py") if folder else ROOT.glob("*.py"))}
        missing |= {f"{folder}/{name}" for name in re.findall(r"\b[a-z_]+\.py\b", line) if name not in there}
    assert missing == set()
