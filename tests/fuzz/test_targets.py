"""Every fuzz target over its seeds, its kept findings and a few mutants; atheris is not needed."""

from __future__ import annotations

import re
import tracemalloc
import warnings
from pathlib import Path
from random import Random
from typing import Final

import pytest

from fuzz import make_corpus, registry
from fuzz.target import Target

#: Mutants of each target. More are what `make fuzz` is for.
MUTANTS: Final = 200
#: What a parser may allocate at once beside 64 bytes for each byte of its input: cbor2 reads 64 KiB ahead.
SPARE_BYTES: Final = 128 << 10
LONGEST_BYTES: Final = 64

each_target = pytest.mark.parametrize("name", registry.NAMES)
findings = [path for path in sorted(registry.CRASHES.glob("*/*")) if path.is_file()]


def kept(name: str) -> list[Path]:
    """Return all inputs that are kept for a target."""
    folders = (registry.CORPUS / name, registry.CRASHES / name)
    return [path for folder in folders for path in sorted(folder.glob("*")) if path.is_file()]


def flip(random: Random, data: bytes) -> bytes:
    """Stand in for libFuzzer's mutation: flip a bit, or insert, remove or repeat a few bytes."""
    start = random.randint(0, len(data))
    end = min(len(data), start + random.randrange(5))
    match random.randrange(4):
        case 0 if data:
            at = start % len(data)
            return data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :]
        case 1:
            return data[:start] + random.randbytes(random.randint(1, 4)) + data[start:]
        case 2:
            return data[:start] + data[end:]
        case _:
            return data[:end] + data[start:]


@each_target
def test_every_kept_input_replays(name: str) -> None:
    """No seed, and nothing that fuzzing ever found interesting, raises or breaks the target's invariant."""
    target = registry.load(name)
    for path in kept(name):
        target.check(path.read_bytes())


@pytest.mark.timeout(20)
@pytest.mark.parametrize("finding", findings, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_finding_comes_back(finding: Path) -> None:
    """What once broke a parser is now accepted or refused like any other input, and soon."""
    assert finding.parent.name in registry.NAMES
    registry.load(finding.parent.name).check(finding.read_bytes())


@each_target
def test_mutants_keep_the_invariant(name: str) -> None:
    """A few hundred mutants, made by the target's own mutation, raise nothing but the parser's documented errors."""
    target, random = registry.load(name), Random(name)
    pool = list(target.seeds().values())
    for _ in range(MUTANTS):
        mutant = mutated(target, random.choice(pool), random)
        target.check(mutant)
        pool.append(mutant)


def mutated(target: Target, data: bytes, random: Random) -> bytes:
    """Return one mutant, as the fuzzing process makes it."""
    if target.mutate is None:
        return flip(random, data)
    return target.mutate(data, random, lambda part: flip(random, part))[: target.max_bytes]


@each_target
def test_seeds_reach_both_answers(name: str) -> None:
    """Among a target's seeds are some that its parser accepts and some that it refuses."""
    target = registry.load(name)
    assert {target.check(data) for data in target.seeds().values()} == {True, False}


@each_target
def test_an_input_cannot_make_its_parser_allocate_much(name: str) -> None:
    """Statement 10: what a parser allocates at once is bounded by its input's length, whatever that declares."""
    target = registry.load(name)
    for path in kept(name):
        data = path.read_bytes()
        target.check(data)
        tracemalloc.start()
        try:
            target.check(data)
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak_bytes <= SPARE_BYTES + LONGEST_BYTES * len(data), path.name


def test_the_seeds_in_the_repository_are_those_that_the_targets_make(tmp_path: Path) -> None:
    """`python -m fuzz.make_corpus` changes nothing, and no seed is left of a target that is gone."""
    make_corpus.write(tmp_path)
    made = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.glob("*/*")}
    stored = {path.relative_to(registry.CORPUS): path.read_bytes() for path in registry.CORPUS.glob("*/*.seed")}
    assert stored == made
    for name in registry.NAMES:
        assert max(map(len, registry.load(name).seeds().values())) <= registry.load(name).max_bytes


def test_every_target_module_is_registered() -> None:
    """No module of fuzz.targets is left out of `make fuzz`."""
    folder = Path(registry.__file__).parent / "targets"
    assert sorted(registry.NAMES) == sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")


def test_every_target_is_documented() -> None:
    """docs/fuzzing.md says of every target what must hold, and reports runs of targets that exist."""
    text = (Path(registry.__file__).parents[1] / "docs" / "fuzzing.md").read_text(encoding="utf-8")
    targets, results = (
        re.findall(r"^\| ([a-z_]+) \|", text.split(f"## {number}. ")[1].split("\n## ")[0], re.MULTILINE)[1:]
        for number in (1, 4)
    )
    assert sorted(targets) == sorted(registry.NAMES)
    assert set(results) <= set(registry.NAMES)


def test_a_tag_is_refused_before_anything_is_made_of_it() -> None:
    """A regular expression in a header is not compiled: Python would have warned of this one, in the sender's words."""
    target = registry.load("strict_cbor")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert not target.check(bytes.fromhex("d82364") + b"[[a]")
    assert caught == []
