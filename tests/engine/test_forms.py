"""What jobs may hold and what they are answered with (docs/spec.md §3), through a whole engine process."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from infra import tiny_model
from infra.tiny_model import Kind
from mrgc.wire import strict_cbor
from mrgc.wire.headers import CBOR_TYPE, SAFETENSORS_TYPE
from tests.engine.host import EngineProcess, Host, Intake
from worker.engine.enclave_client import EnclaveClient
from worker.engine.jobs import Batch, Job
from worker.engine.opening import Opener
from worker.models import registry
from worker.models.base import Model, Tokens
from worker.models.registry import Registry

MOODS: Final = ("joy", "anger", "neither")
TEXTS: Final = ["Return the file", "", "a Value of the string"]
MOST_ITEMS: Final = 16_384
WIDTH: Final = 384


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of model folders, one for each form of answer."""
    folder = tmp_path_factory.mktemp("models")
    tiny_model.write(folder, name="wide", kind=Kind(width=WIDTH))
    tiny_model.write(folder, name="moods", kind=Kind("BertForSequenceClassification", labels=MOODS))
    tiny_model.write(folder, name="tags", kind=Kind("RobertaForTokenClassification", labels=MOODS))
    return folder


@pytest.fixture(scope="module")
def served(models: Path) -> Mapping[str, Model]:
    """The same models in this process, by name."""
    return {model.name: model for model in registry.load(models, device="cpu", dtype="fp32")}


@pytest.fixture
def intake(calm_engine: EngineProcess) -> Iterator[Intake]:
    """A connection to the engine."""
    with Intake(calm_engine.path) as connected:
        yield connected


def ask(host: Host, intake: Intake, job: bytes) -> Any:
    """Run one job and return its JSON body."""
    _, body = host.result(job, intake.run([job])[0])
    return json.loads(body)


def cbor_job(host: Host, inputs: list[Any], model: str, **parameters: Any) -> bytes:
    """Seal a CBOR payload."""
    payload = strict_cbor.encode({"inputs": inputs, "parameters": parameters})
    return host.sealed(payload, items=len(inputs), type=CBOR_TYPE, model=model)


def ids_of(model: Model, text: str) -> NDArray[np.int32]:
    """Tokenise as a tenant would with the model's own tokeniser."""
    (tokens,) = model.tokenise([text])
    assert isinstance(tokens, Tokens)
    return tokens.ids


def alone(model: Model, text: str) -> NDArray[np.float32]:
    """What the model computes for one text by itself."""
    (found,) = model.forward([ids_of(model, text)])
    return np.array(found, dtype=np.float32)


def numbers(rows: list[list[Any]]) -> bytes:
    """Bits of a JSON matrix."""
    return np.array(rows, dtype=np.float32).tobytes()


# --- sizes -------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(180)
def test_a_job_of_the_most_inputs_is_served_as_safetensors(
    calm_host: Host, intake: Intake, served: Mapping[str, Model]
) -> None:
    """All 16,384 rows of 384 numbers, 25 MB, in order and to the bit."""
    texts = list(itertools.islice(itertools.cycle("abcdefghijklmno"), MOST_ITEMS))
    # Fifty thousand tokens on one thread: seconds, unless the machine is busy.
    intake.sock.settimeout(150)
    job = calm_host.job(texts, parameters={"accept": SAFETENSORS_TYPE}, model="wide")
    header, body = calm_host.result(job, intake.run([job])[0])
    assert (header.status, header.type) == ("ok", SAFETENSORS_TYPE)
    embeddings = safetensors.numpy.load(body)["embeddings"]
    assert embeddings.shape == (MOST_ITEMS, WIDTH)
    expected = np.stack([alone(served["wide"], text) for text in texts[:15]])
    assert (embeddings == np.resize(expected, (MOST_ITEMS, WIDTH))).all()


def test_the_same_job_as_json_is_refused_before_the_forward_pass(calm_host: Host, intake: Intake) -> None:
    """It would take 77 MB; no text of it reaches the model."""
    before = intake.health().counters["texts"]
    job = calm_host.job(["x"] * MOST_ITEMS, model="wide")
    assert ask(calm_host, intake, job) == {"errors": [{"code": "result_too_large"}]}
    assert intake.health().counters["texts"] == before


def test_a_job_of_one_input_is_served(calm_host: Host, intake: Intake, served: Mapping[str, Model]) -> None:
    """The smallest job."""
    answer = ask(calm_host, intake, calm_host.job(["alone"], model="wide"))
    assert numbers(answer["embeddings"]) == alone(served["wide"], "alone").tobytes()


def test_token_rows_that_cannot_fit_are_refused_before_the_forward_pass(
    calm_host: Host, calm_engine: EngineProcess, served: Mapping[str, Model]
) -> None:
    """How large they are at least is known once the tokens are counted: tokens × labels × 4."""
    assert calm_engine.process.poll() is None
    least_bytes = sum(len(ids_of(served["tags"], text)) for text in TEXTS) * len(MOODS) * 4
    client = EnclaveClient(calm_host.enclave, calm_host.token_file)
    for cap, failure in ((least_bytes - 1, "result_too_large"), (least_bytes, "")):
        batch = Batch([memoryview(calm_host.job(TEXTS, model="tags"))], lambda _: None)
        rows = Opener(client, Registry(served.values()), max_body_bytes=cap).open(batch)
        (job,) = batch.jobs
        assert isinstance(job, Job)
        assert (job.failure, bool(rows)) == (failure, not failure)
    client.close()


# --- token ids ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ids", ["u16", "u32"])
@pytest.mark.parametrize("name", ["wide", "moods", "tags"])
def test_ids_are_answered_as_their_text_is(
    calm_host: Host, intake: Intake, served: Mapping[str, Model], name: str, ids: str
) -> None:
    """A tenant that tokenises by itself gets the same bits, whatever the model answers with."""
    inputs = [ids_of(served[name], text).astype(f"<u{int(ids[1:]) // 8}").tobytes() for text in TEXTS]
    by_ids = ask(calm_host, intake, cbor_job(calm_host, inputs, name, ids=ids))
    by_text = ask(calm_host, intake, calm_host.job(TEXTS, model=name))
    by_text.pop("offsets", None)
    assert by_ids == by_text


def test_bad_ids_fail_alone(calm_host: Host, intake: Intake, served: Mapping[str, Model]) -> None:
    """Each in its own way, and their mates are served."""
    good = ids_of(served["wide"], "good").astype("<u2").tobytes()
    outside = served["wide"].vocabulary.to_bytes(2, "little")
    inputs = [good, b"", b"\0", outside, good + outside, "text", 7, good * 40, [good], good]
    answer = ask(calm_host, intake, cbor_job(calm_host, inputs, "wide", ids="u16"))
    assert [(error["index"], error["code"]) for error in answer["errors"]] == [
        *((index, "input_invalid") for index in range(1, 7)),
        (7, "input_too_long"),
        (8, "input_invalid"),
    ]
    assert numbers([answer["embeddings"][0], answer["embeddings"][9]]) == 2 * alone(served["wide"], "good").tobytes()


def test_over_long_ids_are_cut_as_their_text_would_be(
    calm_host: Host, intake: Intake, served: Mapping[str, Model]
) -> None:
    """With truncate the last id, which closes the sequence, stays."""
    first, *middle, last = ids_of(served["wide"], "a b c d e f g")
    whole = np.array([first, *(middle * 40), last], dtype="<u4").tobytes()
    by_ids = ask(calm_host, intake, cbor_job(calm_host, [whole], "wide", ids="u32", truncate=True))
    by_text = ask(
        calm_host, intake, calm_host.job(["a b c d e f g " * 40], parameters={"truncate": True}, model="wide")
    )
    assert by_ids == by_text


# --- classes -----------------------------------------------------------------------------------------------------


def test_a_classifier_answers_with_scores_and_their_labels(
    calm_host: Host, intake: Intake, served: Mapping[str, Model]
) -> None:
    """One number per label and input; an input that failed is null."""
    answer = ask(calm_host, intake, calm_host.job([TEXTS[0], 7, TEXTS[2]], model="moods"))
    assert answer.keys() == {"labels", "scores", "errors"}
    assert answer["labels"] == list(MOODS)
    assert answer["errors"] == [{"index": 1, "code": "input_invalid"}]
    assert answer["scores"].pop(1) is None
    expected = [alone(served["moods"], TEXTS[0]), alone(served["moods"], TEXTS[2])]
    assert numbers(answer["scores"]) == np.stack(expected).tobytes()


def test_scores_as_safetensors_name_their_labels(calm_host: Host, intake: Intake, tmp_path: Path) -> None:
    """The labels lie in the metadata, as JSON."""
    job = calm_host.job(TEXTS, parameters={"accept": SAFETENSORS_TYPE}, model="moods")
    _, body = calm_host.result(job, intake.run([job])[0])
    (tmp_path / "body").write_bytes(body)
    with safetensors.safe_open(tmp_path / "body", "numpy") as opened:
        assert json.loads(opened.metadata()["labels"]) == list(MOODS)
        found = opened.get_tensor("scores")
    assert found.tobytes() == numbers(ask(calm_host, intake, calm_host.job(TEXTS, model="moods"))["scores"])


@pytest.mark.parametrize("inputs", ["text", "ids"])
def test_zero_shot_scores_are_the_softmax_of_the_cosines(
    calm_host: Host, intake: Intake, served: Mapping[str, Model], inputs: str
) -> None:
    """Against the labels of the job, at the temperature of docs/spec.md §3, with labels as texts in either form."""
    labels = ["a file", "some string", "nothing"]
    texts: list[Any] = [*TEXTS, 7]
    if inputs == "ids":
        texts = [ids_of(served["wide"], text).astype("<u2").tobytes() for text in TEXTS] + [b""]
        job = cbor_job(calm_host, texts, "wide", ids="u16", labels=labels)
    else:
        job = calm_host.job(texts, parameters={"labels": labels}, model="wide")
    answer = ask(calm_host, intake, job)
    assert (answer["labels"], answer["scores"].pop()) == (labels, None)
    cosines = (
        np.stack([alone(served["wide"], text) for text in TEXTS]).astype(np.float64)
        @ np.stack([alone(served["wide"], label) for label in labels]).astype(np.float64).T
    )
    raised = np.exp(cosines / 0.05)
    assert np.allclose(answer["scores"], raised / raised.sum(axis=1, keepdims=True), atol=1e-5)


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        ("wide", {"labels": ["one"]}),
        ("wide", {"labels": ["same", "same"]}),
        ("wide", {"labels": [f"label {number}" for number in range(65)]}),
        ("wide", {"labels": "joy"}),
        ("wide", {"labels": ["joy", 7]}),
        ("wide", {"labels": ["joy", "\ud800"]}),
        ("wide", {"labels": ["joy", "long " * 200]}),
        ("wide", {"labels": ["joy", "long " * 200], "truncate": True}),
        ("wide", {"labels": ["joy", "anger"], "temperature": 1}),
        ("wide", {"ids": "u16"}),
        ("wide", {"unknown": True}),
        ("moods", {"labels": ["joy", "anger"]}),
        ("tags", {"labels": ["joy", "anger"]}),
    ],
)
def test_parameters_that_a_model_does_not_serve_fail_the_job(
    calm_host: Host, intake: Intake, model: str, parameters: dict[str, Any]
) -> None:
    """What is asked must be exactly what is answered."""
    job = calm_host.job(["text"], parameters=parameters, model=model)
    assert ask(calm_host, intake, job) == {"errors": [{"code": "bad_payload"}]}


# --- tokens ------------------------------------------------------------------------------------------------------


def test_every_token_has_its_scores_and_its_place_in_the_text(
    calm_host: Host, intake: Intake, served: Mapping[str, Model]
) -> None:
    """Offsets count code points: put together they are the text, white space excepted."""
    texts = ["Return the file", "", "naïve – \U0001f600 value"]
    answer = ask(calm_host, intake, calm_host.job([*texts, 7], model="tags"))
    assert (answer["labels"], answer["scores"][3], answer["offsets"][3]) == (list(MOODS), None, None)
    for text, scores, offsets in zip(texts, answer["scores"], answer["offsets"], strict=False):
        assert numbers(scores) == alone(served["tags"], text).tobytes()
        assert len(scores) == len(offsets)
        assert offsets[0] == offsets[-1] == [0, 0]
        spans = [span for span, _ in itertools.groupby(offsets[1:-1])]
        assert "".join(text[start:end] for start, end in spans).replace(" ", "") == text.replace(" ", "")


def test_token_rows_as_safetensors_lie_one_after_another(calm_host: Host, intake: Intake) -> None:
    """Lengths say which rows are whose; an input that failed has none."""
    inputs = [TEXTS[0], 7, TEXTS[2]]
    job = calm_host.job(inputs, parameters={"accept": SAFETENSORS_TYPE}, model="tags")
    header, body = calm_host.result(job, intake.run([job])[0])
    assert header.status == "partial"
    tensors = safetensors.numpy.load(body)
    answer = ask(calm_host, intake, calm_host.job(inputs, model="tags"))
    assert tensors["lengths"].tolist() == [len(scores or []) for scores in answer["scores"]]
    assert tensors["scores"].tobytes() == numbers([row for scores in answer["scores"] for row in scores or []])
    assert tensors["offsets"].tolist() == [span for spans in answer["offsets"] for span in spans or []]


# --- bad inputs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["wide", "moods", "tags"])
def test_bad_inputs_fail_alone_whatever_the_model(
    calm_host: Host, intake: Intake, served: Mapping[str, Model], name: str
) -> None:
    """Empty texts and NULs are texts; a megabyte is too long; the rest is none."""
    inputs: list[Any] = ["", "good", "nul \0 nul", "x" * 1_000_000, "word " * 200_000, "\ud800", 7, None, ["good"], {}]
    answer = ask(calm_host, intake, calm_host.job(inputs, model=name))
    too_long = {index for index in (3, 4) if name == "tags" or index == 4}
    failed = dict.fromkeys(sorted(too_long), "input_too_long") | dict.fromkeys(range(5, 10), "input_invalid")
    assert {error["index"]: error["code"] for error in answer["errors"]} == failed
    rows = answer["embeddings" if name == "wide" else "scores"]
    assert [index for index, row in enumerate(rows) if row is None] == sorted(failed)
    assert numbers(rows[1]) == alone(served[name], "good").tobytes()
