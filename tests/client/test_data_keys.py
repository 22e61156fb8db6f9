"""Epochs of data keys, and the tenant's KMS calls behind them, against a real KMS process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from mrgc.client_settings import AwsAccess
from mrgc.data_keys import EPOCH_JOBS, EPOCH_S, MAX_OPENING_KEYS, DataKeys
from mrgc.errors import AuthenticationError, ConfigError, KeyAccessError, KeyBusyError
from mrgc.tenant_kms import TenantKms, WrappedKey
from tests.client.tenants import REGION, Kms, server_that_says

CONTEXT = {"mrgc:tenant": "acme", "mrgc:use": "job"}


@pytest.fixture
def acme(kms: Kms) -> Iterator[TenantKms]:
    """The KMS as acme sees it."""
    with closing(TenantKms(kms.key_of("acme"), kms.access("acme"))) as made:
        yield made


@pytest.fixture
def make_keys(acme: TenantKms) -> Callable[[list[float]], DataKeys]:
    """Data keys of acme under a clock that the test sets."""
    return lambda clock: DataKeys(acme, tenant="acme", clock=lambda: clock[0])


def test_a_data_key_lasts_ten_minutes(make_keys: Callable[[list[float]], DataKeys]) -> None:
    """Within the epoch every job gets the same key; after it a new one, and the old is zeroed."""
    clock = [1000.0]
    with closing(make_keys(clock)) as keys:
        first = keys.for_sealing()
        clock[0] += EPOCH_S - 1
        assert keys.for_sealing() is first
        clock[0] += 1
        second = keys.for_sealing()
        assert second.edk != first.edk
        assert first.data_key == bytearray(32)
        assert any(second.data_key)


def test_a_data_key_seals_a_bounded_number_of_jobs(make_keys: Callable[[list[float]], DataKeys]) -> None:
    """After 2^20 jobs the next one gets a new key."""
    with closing(make_keys([0.0])) as keys:
        first = keys.for_sealing()
        assert first.jobs_left == EPOCH_JOBS - 1
        first.jobs_left = 1
        assert keys.for_sealing() is first
        assert keys.for_sealing() is not first


def test_a_failed_renewal_leaves_no_old_key_in_use(kms: Kms) -> None:
    """When KMS refuses the next epoch's key, sealing fails; the ended epoch's key is gone."""
    clock = [0.0]
    access = kms.access("acme")
    with (
        closing(TenantKms(kms.key_of("acme"), access)) as good,
        closing(DataKeys(good, tenant="acme", clock=lambda: clock[0])) as keys,
        closing(TenantKms(kms.key_of("globex"), access)) as denied,
    ):
        first = keys.for_sealing()
        clock[0] = EPOCH_S
        keys._kms = denied
        for _ in range(2):
            with pytest.raises(KeyAccessError):
                keys.for_sealing()
        assert first.data_key == bytearray(32)


def test_the_opening_cache_is_bounded_and_zeroes_what_it_drops(
    acme: TenantKms, make_keys: Callable[[list[float]], DataKeys]
) -> None:
    """The least recently used key goes first, zeroed; asking for it again costs a call."""
    edks = [acme.generate(CONTEXT).edk for _ in range(MAX_OPENING_KEYS + 1)]
    with closing(make_keys([0.0])) as keys:
        held = [keys.for_opening(edk) for edk in edks[:-1]]
        keys.for_opening(edks[0])
        keys.for_opening(edks[-1])
        assert [not any(key) for key in held] == [False, True] + [False] * (MAX_OPENING_KEYS - 2)
        calls = acme.calls
        keys.for_opening(edks[0])
        assert acme.calls == calls
        keys.for_opening(edks[1])
        assert acme.calls == calls + 1


def test_generate_and_decrypt_agree(acme: TenantKms) -> None:
    """KMS returns the same 32 bytes for the wrapped key, under the same context only."""
    wrapped = acme.generate(CONTEXT)
    assert acme.decrypt(wrapped.edk, CONTEXT) == wrapped.data_key
    with pytest.raises(AuthenticationError):
        acme.decrypt(wrapped.edk, CONTEXT | {"mrgc:use": "payload"})
    assert repr(wrapped) == f"WrappedKey(edk: {len(wrapped.edk)} bytes)"


@pytest.mark.parametrize("edk", [b"x", b"\x01" * 200])
def test_an_edk_that_kms_did_not_make_is_one_error(acme: TenantKms, edk: bytes) -> None:
    """Rubbish and another key's ciphertext look alike."""
    with pytest.raises(AuthenticationError, match=r"^authentication failed$"):
        acme.decrypt(edk, CONTEXT)


def test_anothers_key_is_refused(kms: Kms) -> None:
    """A principal that the key's policy does not name gets no key."""
    with (
        closing(TenantKms(kms.key_of("globex"), kms.access("acme"))) as foreign,
        pytest.raises(KeyAccessError, match="AccessDeniedException"),
    ):
        foreign.generate(CONTEXT)


def test_wrong_credentials_are_refused(kms: Kms) -> None:
    """A wrong secret key ends as refused, and the text does not show it."""
    access = AwsAccess("AKIAACME", "wr0ng-secret", None, kms.endpoint, None, kms.ca)
    with closing(TenantKms(kms.key_of("acme"), access)) as client:
        with pytest.raises(KeyAccessError, match="Signature") as raised:
            client.generate(CONTEXT)
        assert "wr0ng" not in str(raised.value)


def test_no_credentials_is_a_setting_to_make(kms: Kms) -> None:
    """Without any credentials nothing is sent."""
    access = AwsAccess(kms_endpoint=kms.endpoint, ca_bundle=kms.ca)
    with (
        closing(TenantKms(kms.key_of("acme"), access)) as client,
        pytest.raises(ConfigError, match="credentials"),
    ):
        client.generate(CONTEXT)


def test_a_kms_under_a_foreign_ca_is_not_spoken_to(kms: Kms) -> None:
    """Without the right CA bundle, TLS ends the call; it is not taken for a refusal."""
    access = kms.access("acme")
    stranger = AwsAccess(access.access_key, access.secret_key, None, kms.endpoint)
    with (
        closing(TenantKms(kms.key_of("acme"), stranger)) as client,
        pytest.raises(KeyBusyError, match="SSLError"),
    ):
        client.generate(CONTEXT)


ARN = f"arn:aws:kms:{REGION}:444455556666:key/1234abcd"
PLAIN = b'"Plaintext":"' + b"QUFB" * 10 + b'QUE="'  # 32 bytes


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"{}",
        b'{"CiphertextBlob":"eA==","KeyId":"' + ARN.encode() + b'"}',
        b'{"CiphertextBlob":"eA==","Plaintext":"eA==","KeyId":"' + ARN.encode() + b'"}',
        b'{"CiphertextBlob":"eA==",' + PLAIN + b',"KeyId":"' + ARN.encode() + b'-other"}',
        b'{"CiphertextBlob":"eA==",' + PLAIN + b"}",
        b"{" + PLAIN + b',"KeyId":"' + ARN.encode() + b'"}',
    ],
)
def test_an_incomplete_answer_gives_no_key(answer: bytes) -> None:
    """An answer without key, with a short one, or of another key is no success, as it would be to botocore."""
    with server_that_says(answer) as endpoint:
        access = AwsAccess("AKIAACME", "secret", None, endpoint)
        with closing(TenantKms(ARN, access)) as client, pytest.raises(KeyBusyError, match="incomplete"):
            client.generate(CONTEXT)


def test_the_complete_answer_of_that_server_is_taken() -> None:
    """The incomplete answers above are refused for what they lack, not for where they come from."""
    body = b'{"CiphertextBlob":"eA==",' + PLAIN + b',"KeyId":"' + ARN.encode() + b'"}'
    with server_that_says(body) as endpoint, closing(TenantKms(ARN, AwsAccess("A", "s", None, endpoint))) as client:
        assert client.generate(CONTEXT) == WrappedKey(b"x", bytearray(b"AAA" * 10 + b"AA"))


@pytest.mark.parametrize(
    ("status", "kind", "error"),
    [
        (400, "AccessDeniedException", KeyAccessError),
        (400, "DisabledException", KeyAccessError),
        (400, "KMSInvalidStateException", KeyAccessError),
        (400, "SomethingNewException", KeyAccessError),
        (400, "InvalidCiphertextException", AuthenticationError),
        (400, "IncorrectKeyException", AuthenticationError),
        (400, "DependencyTimeoutException", KeyBusyError),
    ],
)
def test_each_refusal_of_kms_has_its_class(status: int, kind: str, error: type[Exception]) -> None:
    """Refused, not authentic, or busy: what a tenant does next depends on it. The unknown is refused."""
    with server_that_says(b'{"__type":"%s","message":"no"}' % kind.encode(), status) as endpoint:
        access = AwsAccess("AKIAACME", "secret", None, endpoint)
        with closing(TenantKms(ARN, access)) as client, pytest.raises(error) as raised:
            client.decrypt(b"x", CONTEXT)
        assert type(raised.value) is error
