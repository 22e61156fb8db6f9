"""Signatures: botocore's are accepted, and nothing that differs from what was signed."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from infra.kms_config import Principal
from infra.kms_wire import KmsFault
from infra.sigv4 import MAX_SKEW_S, Request, authenticate
from tests.infra_kms.conftest import ACME, SERVICE, Kms
from tests.infra_kms.test_attested_release import code_of

PRINCIPALS: Final = {
    "AKIAACME": Principal(ACME, "acme-secret"),
    "ASIASERVICE": Principal(SERVICE, "service-secret", session_token="a-token"),
}


def signed(access_key: str = "AKIAACME", **headers: str) -> Request:
    """Return a request signed by botocore, now."""
    principal = PRINCIPALS[access_key]
    base = {"Host": "kms.eu-west-1.amazonaws.com", "X-Amz-Target": "TrentService.Decrypt", "Content-Type": "x"}
    request = AWSRequest("POST", "https://kms.eu-west-1.amazonaws.com/", base | headers, b'{"a": 1}')
    SigV4Auth(Credentials(access_key, principal.secret, principal.session_token), "kms", "eu-west-1").add_auth(request)
    return Request("POST", "/", {name.lower(): value for name, value in request.headers.items()}, b'{"a": 1}')


def check(request: Request, *, now_s: float | None = None) -> Any:
    """Authenticate at the time of signing, or at another."""
    return authenticate(request, principals=PRINCIPALS, now_s=signed_at_s(request) if now_s is None else now_s)


def signed_at_s(request: Request) -> float:
    """Return the time that the request says it was signed at."""
    return datetime.strptime(request.headers["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()


def refused(request: Request, kind: str, *, now_s: float | None = None) -> None:
    """Fail unless the request is refused with this error type."""
    with pytest.raises(KmsFault) as caught:
        check(request, now_s=now_s)
    assert caught.value.kind == kind


@pytest.mark.parametrize("access_key", PRINCIPALS)
def test_botocores_signature_is_accepted(access_key: str) -> None:
    """Long-lived and temporary credentials both authenticate their principal."""
    caller = check(signed(access_key))
    assert caller.principal is PRINCIPALS[access_key]
    assert caller.region == "eu-west-1"


def test_spaces_in_a_header_are_canonicalised() -> None:
    """Sequential spaces count as one, as the signer counts them."""
    assert check(signed(**{"X-Amz-Meta": "  a   b "})).principal.arn == ACME


def without(request: Request, name: str) -> Request:
    """Return the request without one header."""
    return request._replace(headers={key: value for key, value in request.headers.items() if key != name})


def changed(request: Request, name: str, value: str) -> Request:
    """Return the request with one header changed."""
    return request._replace(headers={**request.headers, name: value})


def test_nothing_signed_may_change() -> None:
    """Method, path, body, every signed header, region and signature are covered."""
    good = signed()
    authorization = good.headers["authorization"]
    for forged in (
        good._replace(body=b'{"a": 2}'),
        good._replace(method="PUT"),
        good._replace(target="/other"),
        good._replace(target="/?a=b"),
        changed(good, "host", "evil"),
        changed(good, "x-amz-target", "TrentService.Encrypt"),
        changed(good, "content-type", "y"),
        changed(good, "authorization", authorization.replace("eu-west-1", "us-east-1")),
        changed(good, "authorization", authorization[:-1] + ("0" if authorization[-1] != "0" else "1")),
        changed(good, "authorization", authorization.replace(";x-amz-target", "")),
        changed(good, "authorization", authorization.replace("host;", "")),
        changed(good, "authorization", authorization.replace("content-type;host", "host;content-type")),
        changed(good, "x-amz-extra", "1"),
        without(good, "host"),
        without(good, "x-amz-target"),
    ):
        refused(forged, "InvalidSignatureException")


def test_the_callers_identity_must_be_known() -> None:
    """An unknown access key, a wrong, missing or superfluous session token are one and the same refusal."""
    service, acme = signed("ASIASERVICE"), signed()
    renamed = acme.headers["authorization"].replace("AKIAACME", "AKIANOBODY")
    for forged in (
        changed(acme, "authorization", renamed),
        changed(service, "x-amz-security-token", "another"),
        without(service, "x-amz-security-token"),
        changed(acme, "x-amz-security-token", "a-token"),
    ):
        refused(forged, "UnrecognizedClientException")


def test_unsigned_and_malformed_requests_are_told_apart() -> None:
    """No Authorization, another scheme or service, and a date that is none."""
    good = signed()
    authorization = good.headers["authorization"]
    refused(without(good, "authorization"), "MissingAuthenticationTokenException")
    for forged in ("", "Basic eDp5", authorization.replace("/kms/", "/s3/"), authorization + ", x=y"):
        refused(changed(good, "authorization", forged), "IncompleteSignatureException")
    refused(changed(good, "x-amz-date", "yesterday"), "IncompleteSignatureException", now_s=0)


def test_a_clock_too_far_away_is_refused() -> None:
    """A captured request cannot be replayed later than five minutes, nor be signed ahead."""
    good = signed()
    at = signed_at_s(good)
    for offset_s in (-MAX_SKEW_S, MAX_SKEW_S):
        check(good, now_s=at + offset_s)
    for offset_s in (-MAX_SKEW_S - 1, MAX_SKEW_S + 1):
        refused(good, "InvalidSignatureException", now_s=at + offset_s)
    authorization = good.headers["authorization"]
    day = authorization.partition("/")[2][:8]
    refused(changed(good, "authorization", authorization.replace(day, "20200101")), "InvalidSignatureException")


def test_the_server_names_the_refusals_as_aws_does(kms: Kms) -> None:
    """boto3 sees the error codes on which botocore and the enclave act."""
    unknown = kms.client(ACME, aws_access_key_id="AKIANOBODY")
    wrong = kms.client(ACME, aws_secret_access_key="wrong")
    tokenless = kms.client(SERVICE, aws_session_token=None)
    elsewhere = kms.client(ACME, region_name="eu-central-1")
    assert code_of(unknown.generate_random, NumberOfBytes=1) == "UnrecognizedClientException"
    assert code_of(wrong.generate_random, NumberOfBytes=1) == "InvalidSignatureException"
    assert code_of(tokenless.generate_random, NumberOfBytes=1) == "UnrecognizedClientException"
    assert code_of(elsewhere.generate_random, NumberOfBytes=1) == "InvalidSignatureException"
