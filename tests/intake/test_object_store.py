"""Create-only results and capped reads, in a directory, on moto's S3, and on an S3 that answers awkwardly."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from mrgc.errors import BodyMissing, StoreUnavailable
from worker import result_files
from worker.object_store import NewObject, ObjectStore


@pytest.fixture(scope="module", autouse=True)
def _credentials() -> Iterator[None]:
    """Credentials and region from the environment, as a host without a role has them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_REGION", "eu-west-1")
        yield


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """Endpoint of moto's S3 with one bucket; moto's state is the process's, so it is one for the module."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    client = boto3.client("s3", endpoint_url=endpoint, region_name="eu-west-1")
    client.create_bucket(Bucket="results", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    yield endpoint
    server.stop()


@pytest.fixture(params=["directory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[ObjectStore, str]:
    """A store and a prefix in it, both kinds."""
    if request.param == "directory":
        return ObjectStore(), f"file://{tmp_path}/results of a/"
    return ObjectStore(s3_endpoint=request.getfixturevalue("s3")), "s3://results/prefix/"


def create(store: ObjectStore, url: str, body: bytes) -> None:
    """Create one object, or raise why it is not certain."""
    (error,) = asyncio.run(store.create([NewObject(url, body)]))
    if error is not None:
        raise error


def read(store: ObjectStore, url: str, size_bytes: int) -> bytes:
    """Read one object."""
    return asyncio.run(store.read(url, size_bytes=size_bytes))


def test_the_first_result_stays(place: tuple[ObjectStore, str]) -> None:
    """A second result of the same name is no error and changes nothing, whoever comes second."""
    store, prefix = place
    url = f"{prefix}acme/{'0' * 32}/{'a' * 64}.mrgc"
    create(store, url, b"first")
    create(store, url, b"other")
    assert read(store, url, 5) == b"first"


def test_concurrent_writers_leave_one_whole_result(place: tuple[ObjectStore, str]) -> None:
    """Of many hosts that store at once one wins, and all of them may acknowledge."""
    store, prefix = place
    url = f"{prefix}acme/{'0' * 32}/{'b' * 64}.mrgc"
    bodies = [bytes([index]) * 5_000 for index in range(8)]

    async def race() -> None:
        await asyncio.gather(*(store.create([NewObject(url, body)]) for body in bodies))

    asyncio.run(race())
    assert read(store, url, 5_000) in bodies


def test_reads_are_capped_by_the_length_that_was_promised(place: tuple[ObjectStore, str]) -> None:
    """Statement 10: an absent object, or one of another length, is a missing body."""
    store, prefix = place
    create(store, f"{prefix}body", b"12345")
    assert read(store, f"{prefix}body", 5) == b"12345"
    for url, size_bytes in ((f"{prefix}body", 4), (f"{prefix}body", 6), (f"{prefix}absent", 5)):
        with pytest.raises(BodyMissing):
            read(store, url, size_bytes)


class AwkwardS3:
    """Answers PUT and HEAD from two lists, the last entry of each for ever."""

    def __init__(self) -> None:
        self.puts: list[int] = []
        self.heads: list[int] = []
        self.requests: list[str] = []
        peer = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                assert self.headers["If-None-Match"] == "*"
                self._answer("PUT", peer.puts)

            def do_HEAD(self) -> None:
                self._answer("HEAD", peer.heads)

            def _answer(self, method: str, statuses: list[int]) -> None:
                peer.requests.append(method)
                self.send_response(statuses.pop(0) if len(statuses) > 1 else statuses[0])
                self.send_header("Content-Length", "0")
                self.send_header("ETag", '"tag"')
                self.send_header("Last-Modified", "Sun, 22 Nov 2026 17:00:00 GMT")
                self.end_headers()

            def log_message(self, *_args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def endpoint(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def awkward() -> Iterator[AwkwardS3]:
    """An S3 that a test scripts."""
    peer = AwkwardS3()
    yield peer
    peer.server.shutdown()
    peer.server.server_close()


@pytest.mark.parametrize(
    ("puts", "heads", "requests"),
    [
        ([412], [200], ["PUT", "HEAD"]),  # there: somebody was first
        ([409, 200], [404], ["PUT", "HEAD", "PUT"]),  # somebody was writing, and failed
        ([409], [404, 200], ["PUT", "HEAD", "PUT", "HEAD"]),  # somebody was writing, and succeeded
    ],
)
def test_exists_is_believed_only_after_a_look(
    awkward: AwkwardS3, puts: list[int], heads: list[int], requests: list[str]
) -> None:
    """Both 412 and 409 read as "exists"; only an object that is there counts as stored."""
    awkward.puts, awkward.heads = puts, heads
    create(ObjectStore(s3_endpoint=awkward.endpoint), "s3://results/x.mrgc", b"body")
    assert awkward.requests == requests


@pytest.mark.parametrize(("puts", "heads"), [([409], [404]), ([403], [404]), ([503], [404])])
def test_what_is_not_certain_is_an_outage(awkward: AwkwardS3, puts: list[int], heads: list[int]) -> None:
    """A conflict that never ends, a refusal and an error all mean: not stored, try later, nothing is acknowledged."""
    awkward.puts, awkward.heads = puts, heads
    with pytest.raises(StoreUnavailable):
        create(ObjectStore(s3_endpoint=awkward.endpoint), "s3://results/x.mrgc", b"body")


def test_a_store_that_is_gone_is_an_outage(tmp_path: Path) -> None:
    """Neither a refused connection nor a directory that is a file ends in anything but StoreUnavailable."""
    with pytest.raises(StoreUnavailable):
        read(ObjectStore(s3_endpoint="http://127.0.0.1:9"), "s3://results/x.mrgc", 1)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable):
        create(ObjectStore(), f"file://{tmp_path}/file/x.mrgc", b"body")


def test_one_file_that_cannot_be_stored_fails_alone(tmp_path: Path) -> None:
    """The other results of a batch are stored, and nothing but results is left in the directories."""
    (tmp_path / "acme").mkdir()
    (tmp_path / "acme" / "broken").write_text("a file where a directory is needed")
    names = ["acme/1/a.mrgc", "acme/broken/b.mrgc", *(f"globex/{number}/c.mrgc" for number in range(40))]
    objects = [NewObject(f"file://{tmp_path}/{name}", name.encode()) for name in names]
    outcomes = asyncio.run(ObjectStore().create(objects))
    assert [name for name, outcome in zip(names, outcomes, strict=True) if outcome is not None] == [names[1]]
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {*names, "acme/broken"} - {names[1]}
    assert all((tmp_path / name).read_bytes() == name.encode() for name in found - {"acme/broken"})


def test_a_system_that_hides_failed_writes_stores_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where syncfs(2) tells no errors, a result in a directory is never said to be stored."""
    monkeypatch.setattr(result_files, "LEAST_LINUX", (99, 0))
    with pytest.raises(StoreUnavailable):
        create(ObjectStore(), f"file://{tmp_path}/acme/job/request.mrgc", b"result")
    assert not list(tmp_path.rglob("*"))
