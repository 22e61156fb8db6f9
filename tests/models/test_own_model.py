"""A model of one's own runs as docs/models.md prints it, and only by the operator's leave."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mrgc.errors import ConfigError, InputInvalid
from tests.models import own_model
from worker.models import registry
from worker.models.base import Model, Tokens

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of model folders with that of the shown model, its manifest written by the shown command."""
    root = tmp_path_factory.mktemp("own")
    own_model.write_files(root / "models" / own_model.NAME)
    command = shlex.split(own_model.shown("python -m worker.models.make_manifest models/hashed-words"))
    done = subprocess.run(
        [sys.executable, *command[1:]],
        cwd=root,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{own_model.NAME}@sha256:")
    return root / "models"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed packages that holds the shown one."""
    site = tmp_path / "site"
    site.mkdir()
    own_model.install(site)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delitem(sys.modules, "hashed_words", raising=False)
    return site


def load(models: Path, *handlers: str) -> Model:
    """Load the shown model with these handlers allowed."""
    loaded = registry.load(models, device="cpu", dtype="fp32", handlers=frozenset(handlers))
    return loaded.find(own_model.NAME)


@pytest.mark.usefixtures("site")
def test_the_shown_model_embeds(models: Path) -> None:
    """Equal words give equal unit vectors, others other ones, whoever the batch mates are."""
    model = load(models, own_model.NAME)
    outcomes = model.tokenise(["one two", "ONE  two", "three", "", 7])
    assert isinstance(outcomes[-1], InputInvalid)
    rows = [outcome.ids for outcome in outcomes if isinstance(outcome, Tokens)]
    found = np.asarray(model.forward(rows))
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert np.array_equal(found[0], found[1])
    assert not np.allclose(found[0], found[2])
    assert all(np.array_equal(model.forward([row])[0], alone) for row, alone in zip(rows, found, strict=True))


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("allowed", [(), ("other",)])
def test_a_handler_that_is_not_allowed_is_not_even_imported(models: Path, allowed: tuple[str, ...]) -> None:
    """A manifest alone cannot bring code into the process that holds plaintext."""
    with pytest.raises(ConfigError, match="hashed-words: its handler hashed-words is not named in MRGC_MODEL_HANDLERS"):
        load(models, *allowed)
    assert "hashed_words" not in sys.modules


def test_a_handler_that_is_not_installed_is_refused_by_name(models: Path) -> None:
    """The operator learns which package is missing."""
    with pytest.raises(ConfigError, match=r"no installed package offers its handler hashed-words .* mrgc\.models"):
        load(models, own_model.NAME)


def test_a_handler_that_two_packages_offer_is_refused(models: Path, site: Path) -> None:
    """Whose code would run must not depend on the order of a path."""
    entry = site / "hashed_words-1.0.dist-info" / "entry_points.txt"
    other = site / "other-1.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (other / "entry_points.txt").write_text(entry.read_text().replace("hashed_words:", "other:"))
    with pytest.raises(ConfigError, match="2 installed packages offer a handler hashed-words"):
        load(models, own_model.NAME)


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("absent_module:Model", "cannot be imported from absent_module:Model"),
        ("hashed_words:Absent", "cannot be imported from hashed_words:Absent"),
    ],
)
def test_a_handler_that_leads_nowhere_is_refused(models: Path, site: Path, value: str, complaint: str) -> None:
    """A broken installation is a configuration error."""
    entry = site / "hashed_words-1.0.dist-info" / "entry_points.txt"
    entry.write_text(entry.read_text().replace("hashed_words:HashedWordsModel", value))
    with pytest.raises(ConfigError, match=complaint):
        load(models, own_model.NAME)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("self.name, self.digest = manifest.name, '0' * 64", "another name or digest"),
        ("self.name, self.digest = 'other', folder.digest", "another name or digest"),
        ("self.digest = folder.digest", "no name"),
    ],
)
def test_a_handler_that_makes_something_else_is_refused(models: Path, site: Path, change: str, complaint: str) -> None:
    """The digest in a result names the folder that computed it, and every member is there before a job needs it."""
    module = site / "hashed_words.py"
    source = module.read_text()
    line = "self.name, self.digest = manifest.name, folder.digest"
    assert line in source
    module.write_text(source.replace(line, change))
    with pytest.raises(ConfigError, match=complaint):
        load(models, own_model.NAME)


@pytest.mark.usefixtures("site")
def test_its_folder_is_judged_like_any_other(models: Path, tmp_path: Path) -> None:
    """A handler gets no folder that a manifest does not describe, and none over the budget."""
    with pytest.raises(ConfigError, match="MRGC_MODEL_MEMORY_BYTES"):
        registry.load(models, device="cpu", dtype="fp32", memory_bytes=1_000, handlers={own_model.NAME})
    own_model.write_files(tmp_path / "models" / own_model.NAME)
    with pytest.raises(ConfigError, match="has no manifest"):
        load(tmp_path / "models", own_model.NAME)
