"""An opened payload: `{"inputs": [...], "parameters": {...}}` as JSON or CBOR (docs/spec.md §3).

The bytes are authentic but a tenant may still send anything, so structure is counted before it is allocated. An
element of `inputs` that is not text is kept: it fails alone, later, when it is tokenised.

May import: the standard library, mrgc.errors, mrgc.wire, mrgc.wire. Called by worker.engine.jobs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from mrgc.errors import FormatError, PayloadError
from mrgc.wire import strict_cbor, strict_json
from mrgc.wire.headers import CBOR_TYPE, JSON_TYPE, SAFETENSORS_TYPE

if TYPE_CHECKING:
    from mrgc.wire.strict_cbor import Buffer

#: Values that a payload may hold beside its inputs: the most labels of docs/spec.md §3, and the rest.
_SPARE_VALUES: Final = 128
#: Values of the parameter `ids`.
_IDS: Final = ("u16", "u32")
_BYTES, _TEXT = 2, 3  #: Major types of CBOR whose argument is a length in bytes (RFC 8949 §3.1).


class Payload(NamedTuple):
    """What a tenant asks for."""

    #: One element per input; text, or whatever stood there instead.
    inputs: list[object]
    #: Cut over-long inputs instead of failing them.
    truncate: bool
    #: Content type of the result body.
    accept: str
    #: "u16" or "u32" if inputs are byte strings of token ids; empty if they are texts.
    ids: str
    #: Parameters beside these, which the model judges.
    parameters: dict[str, object]

    def __repr__(self) -> str:
        return f"Payload({len(self.inputs)} inputs, truncate={self.truncate}, accept={self.accept}, ids={self.ids})"


def parse(plaintext: Buffer, *, content_type: str, items: int) -> Payload:
    """Parse an opened payload.

    Args:
        plaintext: the body of a job whose tag verified.
        content_type: `type` of its header, application/json or application/cbor.
        items: `items` of its header.

    Raises:
        PayloadError: the form is wrong, a parameter is mistyped, or `items` differs from the inputs.
    """
    try:
        fields = _decode(plaintext, content_type, max_values=2 * items + _SPARE_VALUES)
    except FormatError as error:
        raise PayloadError("payload is not in the form that its header declares") from error
    if type(fields) is not dict or not {"inputs"} <= fields.keys() <= {"inputs", "parameters"}:
        raise PayloadError("payload is not a map of inputs and parameters")
    inputs, parameters = fields["inputs"], fields.get("parameters", {})
    if type(inputs) is not list or len(inputs) != items:
        raise PayloadError("payload does not hold as many inputs as its header says")
    if type(parameters) is not dict:
        raise PayloadError("payload has parameters that are not a map")
    truncate, accept = parameters.pop("truncate", False), parameters.pop("accept", JSON_TYPE)
    if type(truncate) is not bool or accept not in (JSON_TYPE, SAFETENSORS_TYPE):
        raise PayloadError("payload has a parameter of a value that is not served")
    ids = ""
    if "ids" in parameters:
        ids = parameters.pop("ids")
        # JSON has no byte strings.
        if ids not in _IDS or content_type != CBOR_TYPE:
            raise PayloadError("payload has token ids of a form that is not served")
    return Payload(inputs, truncate, accept, ids, parameters)


def _decode(plaintext: Buffer, content_type: str, *, max_values: int) -> Any:
    if content_type == CBOR_TYPE:
        _ensure_bounded(memoryview(plaintext), max_values)
        return strict_cbor.decode(plaintext, booleans=True)
    return strict_json.parse(plaintext, max_values=max_values)


def _ensure_bounded(data: memoryview, max_values: int) -> None:
    """Walk the heads of a CBOR item and refuse it once it has more of them than `max_values`.

    Nested items follow their parent directly, so a flat walk meets each head once and needs no stack.
    """
    position = 0
    for _ in range(max_values):
        if position >= len(data):
            return
        major, info = data[position] >> 5, data[position] & 0x1F
        position += 1
        argument = info
        if info >= 24:
            width = 1 << min(info - 24, 3)
            argument = int.from_bytes(data[position : position + width])
            position += width
        if major in (_BYTES, _TEXT):
            position += argument
    raise FormatError("cbor item has too many values")
