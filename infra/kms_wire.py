"""The JSON 1.1 form of KMS calls: typed members of a request, JSON of an answer, and the one error class.

Shapes and limits: AWS KMS API Reference. A member that an operation does not take is refused rather than ignored, so
a caller never believes in a condition that was not applied. Called by `infra.kms_service` and `infra.local_kms`. May
import: the standard library.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any, Final

#: docs/spec.md §2 and AWS KMS: keys and values of an encryption context are text; AWS caps the whole at 8,192 bytes.
MAX_CONTEXT_CHARS: Final = 8_192


class KmsFault(Exception):
    """An answer other than success: a KMS error type, its text, and the HTTP status."""

    def __init__(self, kind: str, text: str, *, status: int = 400) -> None:
        super().__init__(kind, text)
        self.kind = kind
        self.text = text
        self.status = status

    def body(self) -> bytes:
        """Return the JSON 1.1 body from which botocore builds its exception."""
        return json.dumps({"__type": self.kind, "message": self.text}).encode()


def access_denied(text: str) -> KmsFault:
    """Return the refusal of an authenticated caller."""
    return KmsFault("AccessDeniedException", text)


def invalid(text: str) -> KmsFault:
    """Return the refusal of a request that is not of the API's shape."""
    return KmsFault("ValidationException", text)


def encode_answer(members: Mapping[str, Any]) -> bytes:
    """Return JSON, with bytes as base64."""
    return json.dumps(members, default=lambda value: base64.b64encode(value).decode()).encode()


class Members:
    """Members of one request, read by type; reading nothing that is absent or of another type."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = fields

    @classmethod
    def parse(cls, body: bytes) -> Members:
        """Parse a request body.

        Raises:
            KmsFault: the body is not a JSON object with unique names.
        """
        try:
            fields = json.loads(body, object_pairs_hook=_unique)
        except (ValueError, RecursionError) as err:
            raise KmsFault("SerializationException", "body is not JSON") from err
        if not isinstance(fields, dict):
            raise KmsFault("SerializationException", "body is not an object")
        return cls(fields)

    def ensure_only(self, *names: str) -> None:
        """Refuse members that the operation does not take."""
        unknown = sorted(self._fields.keys() - set(names))
        if unknown:
            raise invalid(f"not supported here: {', '.join(unknown)}")

    def text(self, name: str) -> str:
        """Return a required text."""
        value = self.optional_text(name)
        if value is None:
            raise invalid(f"{name} is missing")
        return value

    def optional_text(self, name: str) -> str | None:
        """Return a text, or None when the member is absent."""
        value = self._fields.get(name)
        if value is not None and not isinstance(value, str):
            raise invalid(f"{name} is not text")
        return value

    def flag(self, name: str) -> bool:
        """Return a boolean; False when absent."""
        value = self._fields.get(name, False)
        if not isinstance(value, bool):
            raise invalid(f"{name} is not a boolean")
        return value

    def count(self, name: str, *, highest: int) -> int | None:
        """Return an integer of 1..highest, or None when the member is absent."""
        value = self._fields.get(name)
        if value is not None and (type(value) is not int or not 1 <= value <= highest):
            raise invalid(f"{name} is not a number up to {highest}")
        return value

    def blob(self, name: str, *, highest: int) -> bytes:
        """Return a required blob of 1..highest bytes."""
        try:
            value = base64.b64decode(self.text(name), validate=True)
        except binascii.Error as err:
            raise KmsFault("SerializationException", f"{name} is not base64") from err
        if not 1 <= len(value) <= highest:
            raise invalid(f"{name} is not 1 to {highest} bytes")
        return value

    def context(self) -> dict[str, str]:
        """Return the encryption context; empty when absent."""
        value = self._fields.get("EncryptionContext") or {}
        if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
            raise invalid("EncryptionContext is not a map of texts")
        if sum(len(key) + len(each) for key, each in value.items()) > MAX_CONTEXT_CHARS:
            raise invalid("EncryptionContext is too long")
        return value

    def structure(self, name: str) -> Members | None:
        """Return a nested structure, or None when the member is absent."""
        value = self._fields.get(name)
        if value is not None and not isinstance(value, dict):
            raise invalid(f"{name} is not a structure")
        return None if value is None else Members(value)

    def ensure_literal(self, name: str, literal: str) -> None:
        """Refuse any other value than `literal`; absent is accepted."""
        if self._fields.get(name, literal) != literal:
            raise invalid(f"{name} is not {literal}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("duplicate name")
    return fields
