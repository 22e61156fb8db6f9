"""Result bodies: forms, statuses and caps of docs/spec.md §3."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from mrgc.errors import InputInvalid, InputTooLong, ModelError, ResultTooLarge
from mrgc.wire.headers import JSON_TYPE, SAFETENSORS_TYPE
from worker.engine import results
from worker.engine.results import Body
from worker.models.answers import EmbeddingAnswer
from worker.models.base import Embeddings

EMBEDDINGS = np.array([[0.5, -0.25], [0, 0], [1, 0]], dtype=np.float32)
ERRORS = {1: InputTooLong("too long")}
CAP = 1_000


def build(embeddings: Embeddings, errors: Mapping[int, ModelError], *, accept: str, max_bytes: int) -> Body:
    """Build the body of an answer whose rows came one by one, those of failed inputs never."""
    answer = EmbeddingAnswer(len(embeddings), embeddings.shape[1])
    for place in set(range(len(embeddings))) - errors.keys():
        answer.put(place, embeddings[place])
    return results.build(answer, errors, items=len(embeddings), accept=accept, max_bytes=max_bytes)


def test_a_job_without_failures_is_ok_with_an_empty_list_of_errors() -> None:
    """Readers find both keys in every JSON body that carries embeddings."""
    body = build(EMBEDDINGS, {}, accept=JSON_TYPE, max_bytes=CAP)
    assert (body.status, body.type) == ("ok", JSON_TYPE)
    assert json.loads(body.data) == {"embeddings": [[0.5, -0.25], [0, 0], [1, 0]], "errors": []}


def test_a_failed_input_is_null_with_its_index_and_code() -> None:
    """Order is input order, and the error says which input it belongs to."""
    body = build(EMBEDDINGS, ERRORS, accept=JSON_TYPE, max_bytes=CAP)
    assert body.status == "partial"
    assert json.loads(body.data) == {
        "embeddings": [[0.5, -0.25], None, [1, 0]],
        "errors": [{"index": 1, "code": "input_too_long"}],
    }


@pytest.mark.parametrize("accept", [JSON_TYPE, SAFETENSORS_TYPE])
def test_a_job_of_which_every_input_failed_is_failed_as_json(accept: str) -> None:
    """No output is no result, whatever type was asked for; each input's code is told."""
    errors = {1: InputTooLong(""), 0: InputInvalid("")}
    body = build(EMBEDDINGS[:2], errors, accept=accept, max_bytes=CAP)
    assert (body.status, body.type) == ("failed", JSON_TYPE)
    assert json.loads(body.data) == {
        "errors": [{"index": 0, "code": "input_invalid"}, {"index": 1, "code": "input_too_long"}]
    }


def test_a_job_that_failed_as_a_whole_tells_one_code() -> None:
    """The form that docs/spec.md §3 gives a failed body."""
    body = results.failed("bad_payload")
    assert (body.status, body.type, bytes(body.data)) == ("failed", JSON_TYPE, b'{"errors": [{"code": "bad_payload"}]}')


def test_safetensors_are_read_by_their_own_library() -> None:
    """The library is the judge of the layout, names and shape."""
    body = build(EMBEDDINGS, {}, accept=SAFETENSORS_TYPE, max_bytes=CAP)
    assert (body.status, body.type) == ("ok", SAFETENSORS_TYPE)
    tensors = safetensors.numpy.load(bytes(body.data))
    assert tensors.keys() == {"embeddings"}
    assert tensors["embeddings"].dtype == np.float32
    assert tensors["embeddings"].tobytes() == EMBEDDINGS.tobytes()


def test_safetensors_tell_errors_in_their_metadata(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The same array as in JSON, as text; the failed row is zero."""
    path = tmp_path_factory.mktemp("body") / "body.safetensors"
    path.write_bytes(build(EMBEDDINGS, ERRORS, accept=SAFETENSORS_TYPE, max_bytes=CAP).data)
    with safetensors.safe_open(path, "numpy") as body:
        assert json.loads(body.metadata()["errors"]) == [{"index": 1, "code": "input_too_long"}]
        assert not body.get_tensor("embeddings")[1].any()


def test_the_tensor_of_a_safetensors_body_is_aligned() -> None:
    """Readers map the tensor in place, so it begins at a multiple of eight."""
    for rows in range(1, 30):
        body = build(EMBEDDINGS[:1].repeat(rows, axis=0), {}, accept=SAFETENSORS_TYPE, max_bytes=CAP)
        assert int.from_bytes(body.data[:8], "little") % 8 == 0


@pytest.mark.parametrize("accept", [JSON_TYPE, SAFETENSORS_TYPE])
def test_a_body_over_the_cap_is_refused_and_one_at_the_cap_is_not(accept: str) -> None:
    """The cap is on the body as it came out."""
    size = len(build(EMBEDDINGS, {}, accept=accept, max_bytes=CAP).data)
    assert build(EMBEDDINGS, {}, accept=accept, max_bytes=size)
    with pytest.raises(ResultTooLarge):
        build(EMBEDDINGS, {}, accept=accept, max_bytes=size - 1)


@pytest.mark.parametrize(("accept", "per_number"), [(JSON_TYPE, 8), (SAFETENSORS_TYPE, 4)])
def test_the_size_known_before_inference_is_that_of_the_specification(accept: str, per_number: int) -> None:
    """docs/spec.md §3: items × D × 8 for JSON, × 4 for safetensors."""
    assert EmbeddingAnswer(10, 384).least_bytes(accept) == 10 * 384 * per_number


def test_a_body_does_not_show_itself() -> None:
    """A log line or a traceback with a body in it names its length only."""
    body = build(EMBEDDINGS, {}, accept=JSON_TYPE, max_bytes=CAP)
    assert "0.25" not in repr(body)
