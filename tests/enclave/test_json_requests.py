from __future__ import annotations

import base64
import contextlib
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave import json_requests
from enclave.json_requests import (
    MAX_REST_BYTES,
    DecryptRequest,
    EncryptRequest,
    HealthRequest,
    HelloRequest,
    Request,
    decode_base64,
    parse,
    read,
)
from mrgc.errors import FormatError, MrgcError, TooLargeError
from mrgc.wire import strict_json

ARN = "arn:aws:kms:us-east-1:123456789012:key/1234abcd"
DECRYPT = {
    "action": "decrypt",
    "encrypted_payload": base64.b64encode(b"sealed").decode(),
    "kms_key_arn": ARN,
    "tenant_id": "tenant-123",
    "request_id": "req-abc-123",
}
ENCRYPT = {
    "action": "encrypt",
    "plaintext_result": base64.b64encode(b"result").decode(),
    "kms_key_arn": ARN,
    "request_id": "req-abc-123",
}
HEALTH = {"action": "health", "request_id": "health-check-1"}
HELLO = {"action": "hello", "token": base64.b64encode(bytes(32)).decode()}
EXAMPLES: list[dict[str, Any]] = [DECRYPT, ENCRYPT, HEALTH, HELLO]


def request(members: dict[str, Any] | bytes) -> Request:
    """Read and parse a request."""
    return parse(read(bytearray(members if isinstance(members, bytes) else json.dumps(members).encode())))


def code(members: dict[str, Any] | bytes) -> str:
    """Return the code that a request is refused with."""
    with pytest.raises(MrgcError) as caught:
        request(members)
    return caught.value.code


def test_each_action_is_read() -> None:
    """The requests of the protocol's document, and hello, come out typed."""
    assert request(DECRYPT) == DecryptRequest("req-abc-123", "tenant-123", ARN, bytearray(b"sealed"))
    assert request(ENCRYPT) == EncryptRequest("req-abc-123", ARN, bytearray(b"result"))
    assert request(HEALTH) == HealthRequest("health-check-1")
    assert request(HELLO) == HelloRequest(bytes(32))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example["action"])
def test_a_missing_an_unknown_or_a_mistyped_field_is_refused(example: dict[str, Any]) -> None:
    """Every field is needed, no other is allowed, and all are text; without an action nothing is known."""
    wrongs: list[Any] = [None, 1, 1.5, True, [], {}, ["text"], ""]
    for name in example:
        assert code({key: value for key, value in example.items() if key != name}) == "bad_format"
        for wrong in wrongs:
            expected = "unsupported" if (name, wrong) == ("action", "") else "bad_format"
            assert code(example | {name: wrong}) == expected
    assert code(example | {"more": ""}) == "bad_format"


def test_an_unknown_action_is_unsupported() -> None:
    """Actions are exact: another case or a newer action is named as such, and its request_id read."""
    for action in ("Decrypt", "attest", "generate", "decrypt "):
        assert code(DECRYPT | {"action": action}) == "unsupported"
        assert read(bytearray(json.dumps(DECRYPT | {"action": action}).encode())).request_id == "req-abc-123"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("request_id", "r" * 129),
        ("request_id", "r\n"),
        ("request_id", "r\x7f"),
        ("request_id", "ü"),
        ("tenant_id", "Tenant"),
        ("tenant_id", "t" * 64),
        ("tenant_id", "t\n"),
        ("kms_key_arn", "arn:aws:kms:us-east-1:123456789012:alias/a"),
        ("kms_key_arn", ARN + "\n"),
        ("kms_key_arn", "arn:aws:kms:us-east-1:123456789012:key/..."),
    ],
)
def test_a_value_outside_its_rule_is_refused(name: str, value: str) -> None:
    """Identifiers follow docs/spec.md §2 and §8 to the letter."""
    assert code(DECRYPT | {name: value}) == "bad_format"


@pytest.mark.parametrize("request_id", ["r", " ", "~" * 128, 'a"b\\c/'])
def test_a_request_id_is_any_printable_text(request_id: str) -> None:
    """1 to 128 characters from space to tilde, quotes and backslashes among them."""
    assert request(HEALTH | {"request_id": request_id}) == HealthRequest(request_id)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b'{"action": "health"',
        b"\xef\xbb\xbf" + json.dumps(HEALTH).encode(),
        json.dumps(HEALTH).encode("utf-16"),
        json.dumps(HEALTH).encode() + b"\x00",
        json.dumps(HEALTH).encode() * 2,
        b'{"action": "health", "request_id": "\xff"}',
        b'{"action": "health", "request_id": "a", "request_id": "a"}',
        b'{"action": "health", "request_id": "a", "re\\u0071uest_id": "a"}',
        b'{"action": "health", "request_id": NaN}',
        b'{"action": "health", "request_id": "r", "x": ' + b"[" * 8 + b"]" * 8 + b"}",
        b'{"action": "health", "request_id": "r", "x": [' + b"1," * 70 + b"1]}",
        b'{"action": "health", "request_id": "r\n"}',
        b"{'action': 'health', 'request_id': 'r'}",
        b'{"action": "health", "request_id": "r",}',
    ],
    ids=lambda text: repr(text[-24:]),
)
def test_what_is_not_strict_json_is_unreadable(text: bytes) -> None:
    """Another encoding, a name twice, NaN, depth over 8 or broken syntax: bad_format, and no request_id is read."""
    assert code(text) == "bad_format"
    assert read(bytearray(text)).request_id == ""


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        (HEALTH | {"more": [1]}, "health-check-1"),
        (DECRYPT | {"encrypted_payload": 5}, "req-abc-123"),
        ({"request_id": "alone"}, "alone"),
        (HEALTH | {"request_id": 5}, ""),
        (HEALTH | {"request_id": ""}, ""),
        (HEALTH | {"request_id": "ü"}, ""),
        (HELLO, ""),
    ],
)
def test_an_error_can_repeat_every_legal_request_id(members: dict[str, Any], expected: str) -> None:
    """Whatever else is wrong, a request_id that follows its rule is known; another one is empty."""
    assert read(bytearray(json.dumps(members).encode())).request_id == expected


def test_a_request_is_long_only_in_its_payload() -> None:
    """Payloads of megabytes pass, and any other long member is too_large before it is parsed."""
    data = bytes(3_000_000)
    assert request(ENCRYPT | {"plaintext_result": base64.b64encode(data).decode()}) == EncryptRequest(
        "req-abc-123", ARN, bytearray(data)
    )
    for name in ("request_id", "kms_key_arn", "more"):
        assert code(ENCRYPT | {name: "x" * MAX_REST_BYTES}) == "too_large"
    assert isinstance(read(bytearray(b"{" + b" " * MAX_REST_BYTES + b"}")).fault, TooLargeError)


def test_a_payload_with_escapes_is_read_as_well() -> None:
    """An encoder that writes a slash as backslash slash says the same as one that does not."""
    text = json.dumps(DECRYPT | {"encrypted_payload": "////"}).replace("/", "\\/").encode()
    assert request(text) == request(DECRYPT | {"encrypted_payload": "////"})
    assert code(DECRYPT | {"encrypted_payload": "ü==="}) == "bad_format"


def test_a_payload_never_passes_for_another_member() -> None:
    """A payload that lies elsewhere than its action has it, or twice, is an unknown or a duplicate field."""
    assert code(DECRYPT | {"plaintext_result": "YWE="}) == "bad_format"
    assert code({**ENCRYPT, "encrypted_payload": ""}) == "bad_format"
    nested = json.dumps(ENCRYPT | {"plaintext_result": ""})[:-1] + ', "more": {"plaintext_result": "YWE="}}'
    assert code(nested.encode()) == "bad_format"
    twice = json.dumps(ENCRYPT)[:-1] + ', "plaintext_result": "YWE="}'
    assert code(twice.encode()) == "bad_format"
    assert code(json.dumps(ENCRYPT).replace("plaintext_result", 'x\\"plaintext_result').encode()) == "bad_format"


member_names = st.sampled_from([*DECRYPT, "plaintext_result", 'a"encrypted_payload', '\\"plaintext_result', ":", ""])
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=8)
    | st.sampled_from(["encrypted_payload", "QUJD", ""]),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(member_names, children, max_size=3),
    max_leaves=8,
)


@given(members=st.dictionaries(member_names, json_values, max_size=6), compact=st.booleans(), ascii_only=st.booleans())
def test_cutting_the_payload_out_changes_no_other_member(
    members: dict[str, Any], *, compact: bool, ascii_only: bool
) -> None:
    """Beside a parse of the whole text, a cut one differs in the one payload that it keeps in the frame, at most."""
    text = json.dumps(members, separators=(",", ":") if compact else None, ensure_ascii=ascii_only).encode()
    frame = read(bytearray(text))
    try:
        whole = strict_json.parse(text, max_values=64)
    except FormatError:
        assert frame.fault is not None
        return
    assert frame.fault is None
    restored = json.dumps(frame.members, sort_keys=True)
    if frame.payload:
        # Put back in the place of one empty payload, it gives the whole again.
        value = json.dumps(bytes(frame.payload).decode())
        candidates = [
            restored[: found.end() - 2] + value + restored[found.end() :]
            for found in re.finditer(r'"(?:encrypted_payload|plaintext_result)": ""', restored)
        ]
        assert json.dumps(whole, sort_keys=True) in candidates
    else:
        assert restored == json.dumps(whole, sort_keys=True)


@given(noise=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_noise_raises_nothing_but_format_errors(noise: bytes) -> None:
    """Arbitrary bytes behind a brace are refused, and reading them raises nothing at all."""
    for text in (noise, b"{" + noise, json.dumps(DECRYPT).encode()[:-1] + noise):
        with contextlib.suppress(FormatError):
            parse(read(bytearray(text)))


# --- base64 ----------------------------------------------------------------------------------------------------------


@given(data=st.binary(min_size=1, max_size=400))
def test_base64_is_decoded(data: bytes) -> None:
    """What the standard library encodes comes back, in a buffer of its own."""
    assert decode_base64(memoryview(base64.b64encode(data))) == data


@given(text=st.text(alphabet="AQgw+/=-_ \n", max_size=12).map(str.encode))
def test_base64_has_one_encoding_for_each_value(text: bytes) -> None:
    """Accepted is exactly what encoding the decoded bytes gives back: no other padding, space or unused bit."""
    try:
        data = decode_base64(memoryview(text))
    except FormatError:
        with contextlib.suppress(ValueError):
            assert not text or base64.b64encode(base64.b64decode(text, validate=True)) != text
        return
    assert base64.b64encode(data) == text


@pytest.mark.parametrize(
    "text", ["", "Y", "YQ", "YQ=", "YR==", "YWF=", "====", "=YQ=", "YQ==YQ==", "YQ-_", "YQ==\n", " YQ=="]
)
def test_base64_of_another_form_is_refused(text: str) -> None:
    """Missing, misplaced or surplus padding, unused bits, the URL alphabet and white space."""
    assert code(DECRYPT | {"encrypted_payload": text}) == "bad_format"


def test_padding_between_two_pieces_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding goes piece by piece, and padding may stand at the end of the last one only."""
    monkeypatch.setattr(json_requests, "_PIECE_CHARS", 8)
    for size in range(1, 40):
        data = bytes(range(size))
        assert decode_base64(memoryview(base64.b64encode(data))) == data
    for text in (b"YWFhYQ==YWFh", b"YWFhYWE=YWFh", b"YWFhYWFhYQ==YQ==", b"YWFhYQ==YWE="):
        with pytest.raises(FormatError):
            decode_base64(memoryview(text))


def test_the_payload_stays_in_the_frame_and_no_repr_shows_it() -> None:
    """A plaintext's base64 is a view of the frame's own buffer, and a traceback or log shows lengths only."""
    body = bytearray(json.dumps(ENCRYPT | {"plaintext_result": base64.b64encode(b"canary").decode()}).encode())
    frame = read(body)
    assert frame.payload.obj is body
    assert frame.members["plaintext_result"] == ""
    shown = repr(frame) + repr(parse(frame)) + repr(HelloRequest(b"canary"))
    assert "canary" not in shown
    assert base64.b64encode(b"canary").decode() not in shown
