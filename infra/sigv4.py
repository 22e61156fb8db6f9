"""Verification of AWS Signature Version 4 on a request to KMS.

AWS: IAM User Guide, "Create a signed AWS API request". Called by `infra.local_kms`. May import: the standard library,
infra.kms_config, infra.kms_wire. It signs nothing: clients use botocore.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, NamedTuple

from infra.kms_config import Principal
from infra.kms_wire import KmsFault

#: AWS refuses a request whose clock differs by more than five minutes.
MAX_SKEW_S: Final = 300

_AUTHORIZATION: Final = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<access_key>[A-Za-z0-9]{1,128})/(?P<date>[0-9]{8})/(?P<region>[a-z0-9-]{1,32})"
    r"/kms/aws4_request, ?SignedHeaders=(?P<headers>[a-z0-9;-]{1,512}), ?Signature=(?P<signature>[0-9a-f]{64})"
)
_DATE_FORMAT: Final = "%Y%m%dT%H%M%SZ"
_MUST_BE_SIGNED: Final = frozenset({"host", "x-amz-date", "x-amz-target"})


class Request(NamedTuple):
    """An HTTP request as received; header names in lower case, each at most once."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Caller:
    """The authenticated sender of a request, and the region it addressed."""

    principal: Principal
    region: str


def authenticate(request: Request, *, principals: Mapping[str, Principal], now_s: float) -> Caller:
    """Find out who signed the request.

    Raises:
        KmsFault: no signature, an unknown access key or token, a wrong signature, or a clock too far away.
    """
    authorization = request.headers.get("authorization")
    if authorization is None:
        raise KmsFault("MissingAuthenticationTokenException", "request is not signed")
    parts = _AUTHORIZATION.fullmatch(authorization)
    if parts is None:
        raise KmsFault("IncompleteSignatureException", "Authorization is not AWS4-HMAC-SHA256 for kms")
    principal = _principal(request.headers, parts["access_key"], principals)
    signed = parts["headers"].split(";")
    _ensure_covered(request.headers, signed)
    date = _date(request.headers["x-amz-date"], scope_date=parts["date"], now_s=now_s)
    scope = f"{parts['date']}/{parts['region']}/kms/aws4_request"
    canonical = hashlib.sha256(_canonical(request, signed)).hexdigest()
    to_sign = f"AWS4-HMAC-SHA256\n{date}\n{scope}\n{canonical}"
    expected = hmac.new(_signing_key(principal.secret, scope), to_sign.encode(), hashlib.sha256).hexdigest()
    if not hmac.compare_digest(expected, parts["signature"]):
        raise KmsFault("InvalidSignatureException", "the signature does not match")
    return Caller(principal, parts["region"])


def _principal(headers: Mapping[str, str], access_key: str, principals: Mapping[str, Principal]) -> Principal:
    principal = principals.get(access_key)
    token = headers.get("x-amz-security-token", "").encode()
    if principal is None or not hmac.compare_digest(token, (principal.session_token or "").encode()):
        raise KmsFault("UnrecognizedClientException", "The security token included in the request is invalid.")
    return principal


def _ensure_covered(headers: Mapping[str, str], signed: list[str]) -> None:
    """Demand that the signature covers every header that changes the request's meaning."""
    needed = _MUST_BE_SIGNED | {name for name in headers if name.startswith("x-amz-")}
    if not needed <= set(signed) or not set(signed) <= headers.keys() or signed != sorted(set(signed)):
        raise KmsFault("InvalidSignatureException", "a header that must be signed is not")


def _date(text: str, *, scope_date: str, now_s: float) -> str:
    try:
        signed_at = datetime.strptime(text, _DATE_FORMAT).replace(tzinfo=UTC)
    except ValueError as err:
        raise KmsFault("IncompleteSignatureException", "X-Amz-Date is not a date") from err
    if abs(signed_at.timestamp() - now_s) > MAX_SKEW_S:
        raise KmsFault("InvalidSignatureException", "Signature expired or not yet current")
    if text[:8] != scope_date:
        raise KmsFault("InvalidSignatureException", "the scope is of another day")
    return text


def _canonical(request: Request, signed: list[str]) -> bytes:
    headers = "".join(f"{name}:{' '.join(request.headers[name].split())}\n" for name in signed)
    payload = hashlib.sha256(request.body).hexdigest()
    return f"{request.method}\n{request.target}\n\n{headers}\n{';'.join(signed)}\n{payload}".encode()


def _signing_key(secret: str, scope: str) -> bytes:
    key = f"AWS4{secret}".encode()
    for part in scope.split("/"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return key
