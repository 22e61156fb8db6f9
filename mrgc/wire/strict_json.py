"""JSON as docs/spec.md §0 allows it: UTF-8, no BOM, no duplicate names, no NaN or Infinity, bounded depth.

For payloads, result bodies, manifests and a tenant's lines. Structure is counted on the raw bytes before the parser
allocates anything, because 33 MB of `[],[],` would become a gigabyte of objects.

May import: the standard library, mrgc.errors.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final, NoReturn

from mrgc.errors import FormatError

if TYPE_CHECKING:
    from mrgc.wire.strict_cbor import Buffer

MAX_DEPTH: Final = 8  #: docs/spec.md §0; the outermost value counts as 1.

#: A string with its escapes; one that never ends goes to the end of the text, and the parser refuses it. From a quote
#: on it always matches and never takes a step back, or else 64 KiB of escaped quotes would take half a minute.
_STRING: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_NOT_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))


def parse(data: Buffer, *, max_values: int) -> Any:
    """Parse one JSON text.

    Args:
        data: the text; may end in white space. The caller caps its length.
        max_values: most commas and brackets outside strings, which bounds the values that come of it.

    Returns:
        dict, list, str, int, float, bool or None. A string may hold lone surrogates, if it was escaped so.

    Raises:
        FormatError: the bytes are not one JSON text of the allowed form.
    """
    _ensure_bounded(data, max_values)
    # `from None` and positions only: the parser's own error carries the document, which may be a tenant's plaintext.
    try:
        return _DECODER.decode(str(data, "utf-8"))
    except UnicodeDecodeError as error:
        raise FormatError(f"not utf-8 at byte {error.start + 1}") from None
    except json.JSONDecodeError as error:
        raise FormatError(f"not json at character {error.pos + 1}") from None
    except (ValueError, RecursionError):  # beside the hooks below: a number of over 4,300 digits
        raise FormatError(
            "json with a name twice, or a number that json does not have or python does not take"
        ) from None


def _ensure_bounded(data: Buffer, max_values: int) -> None:
    structure = _without_strings(data, max_values)
    if structure.count(b",") + structure.count(b"[") + structure.count(b"{") > max_values:
        raise FormatError("json text has too many values")
    depth = 0
    for bracket in structure.translate(None, _NOT_BRACKETS):
        depth += 1 if bracket in b"[{" else -1
        if not 0 <= depth <= MAX_DEPTH:
            raise FormatError("json text is nested too deeply, or closes what it did not open")


def _without_strings(data: Buffer, max_values: int) -> bytearray:
    structure, end = bytearray(), 0
    view = memoryview(data)
    for count, string in enumerate(_STRING.finditer(data)):
        # Each comma or bracket brings at most a name and a value. Without this bound, and with re.sub, the matcher
        # would keep an object for every string: sixty times the text, if it is `"","","",…`.
        if count > 2 * max_values:
            raise FormatError("json text has too many values")
        structure += view[end : string.start()]
        end = string.end()
    structure += view[end:]
    return structure


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("duplicate name")
    return fields


def _refuse_constant(_: str) -> NoReturn:
    raise ValueError("not a json number")


#: json.loads would make one for each text, which costs as much as a short text.
_DECODER: Final = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse_constant)
