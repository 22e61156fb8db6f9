"""The store that a tenant reads from: exact, bounded, and told apart from one that fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from mrgc.client_settings import AwsAccess
from mrgc.result_store import ResultStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ResultStore]:
    """A directory store."""
    with closing(ResultStore(f"file://{tmp_path}/", AwsAccess())) as made:
        yield made


def test_objects_come_in_the_order_of_their_names(store: ResultStore, tmp_path: Path) -> None:
    """More objects than are read at once, some of them missing, keep their places."""
    for index in range(0, 40, 2):
        (tmp_path / f"{index}").write_bytes(bytes([index]))
    found = store.read([str(index) for index in range(40)], max_bytes=1)
    assert found == [bytes([index]) if index % 2 == 0 else None for index in range(40)]


def test_an_object_over_the_cap_is_not_read(store: ResultStore, tmp_path: Path) -> None:
    """The cap is exact, and one object over it does not keep the others from being read."""
    (tmp_path / "fits").write_bytes(b"123")
    (tmp_path / "over").write_bytes(b"1234")
    assert store.read(["over", "fits", "absent"], max_bytes=3) == [b"", b"123", None]


def test_a_folder_in_an_objects_place_is_no_object(store: ResultStore, tmp_path: Path) -> None:
    """Only files are objects."""
    (tmp_path / "acme").mkdir()
    assert store.read(["acme", "acme/x"], max_bytes=3) == [None, None]


def test_a_directory_takes_no_uploads(store: ResultStore) -> None:
    """Claim checks exist for buckets only."""
    assert not store.takes_uploads


def test_a_path_with_escapes_is_the_path_it_names(tmp_path: Path) -> None:
    """file:// URLs are percent-encoded."""
    (tmp_path / "two words").mkdir()
    (tmp_path / "two words" / "x").write_bytes(b"1")
    with closing(ResultStore(f"file://{tmp_path}/two%20words/", AwsAccess())) as store:
        assert store.read(["x"], max_bytes=1) == [b"1"]
