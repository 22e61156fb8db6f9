"""Settings: what is refused at once, what is only missed when it is needed, and what never shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from mrgc.client import Client
from mrgc.client_settings import AwsAccess, ClientSettings
from mrgc.errors import ConfigError
from mrgc.payloads import JobOptions

ARN = "arn:aws:kms:eu-west-1:123456789012:key/1234abcd"
ENV = {"MRGC_TENANT": "acme", "MRGC_KEY_ARN": ARN}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"MRGC_TENANT": ""}, "MRGC_TENANT"),
        ({"MRGC_TENANT": "Acme"}, "MRGC_TENANT"),
        ({"MRGC_TENANT": "acme\n"}, "MRGC_TENANT"),
        ({"MRGC_KEY_ARN": "alias/acme"}, "MRGC_KEY_ARN"),
        ({"MRGC_KEY_ARN": "arn:aws:kms:eu-west-1:123456789012:alias/acme"}, "MRGC_KEY_ARN"),
        ({"MRGC_MODEL": "UPPER"}, "MRGC_MODEL"),
        ({"AWS_ACCESS_KEY_ID": "AKIA"}, "credentials"),
        ({"AWS_SECRET_ACCESS_KEY": "secret"}, "credentials"),
    ],
)
def test_a_malformed_setting_is_named(change: dict[str, str], named: str) -> None:
    """Nothing is guessed: the variable at fault is in the error."""
    with pytest.raises(ConfigError, match=named):
        Client.from_env(ENV | change)


def test_only_who_and_which_key_are_always_needed() -> None:
    """Queue, results and model are missed when a command needs them."""
    with Client.from_env(ENV) as client:
        assert client.settings.queue_url == ""
        with pytest.raises(ConfigError, match="model"):
            client.submit(["x"])


@pytest.mark.parametrize("url", ["", "file://host/x/", "file:relative", "https://bucket/x", "s3:///x", "/tmp/x"])
def test_a_results_url_of_another_form_is_refused(url: str, tmp_path: Path) -> None:
    """Only file:///directory/ and s3://bucket/prefix/ are results URLs."""
    with (
        Client.from_env(ENV | {"MRGC_RESULTS_URL": url, "MRGC_STATE": str(tmp_path)}) as client,
        pytest.raises(ConfigError, match="MRGC_RESULTS_URL"),
    ):
        _ = client._parts.store


def test_a_results_directory_must_exist(tmp_path: Path) -> None:
    """A mistyped directory is not taken for one in which no result has appeared yet."""
    with (
        Client.from_env(ENV | {"MRGC_RESULTS_URL": f"file://{tmp_path}/absent/"}) as client,
        pytest.raises(ConfigError, match="absent"),
    ):
        _ = client._parts.store


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("", "MRGC_QUEUE_URL is not set"),
        ("https://user:pa55@sqs.eu-west-1.amazonaws.com/123456789012/jobs", "no SQS queue URL"),
        ("amqp://user:pa55@host", "neither a redis"),
        ("redis://user:pa55@host:port/0", "malformed"),
        ("redis://user:pa55@host/0?socket_timeout=soon", "malformed"),
    ],
)
def test_a_queue_url_that_cannot_be_served_is_refused_without_its_password(url: str, text: str) -> None:
    """The error says what is wrong with the URL, and does not quote it."""
    with Client.from_env(ENV | {"MRGC_QUEUE_URL": url}) as client:
        with pytest.raises(ConfigError, match=text) as raised:
            _ = client._parts.queue
        assert "pa55" not in str(raised.value)


def test_the_state_folder_follows_xdg() -> None:
    """MRGC_STATE wins, then XDG_STATE_HOME if absolute, then ~/.local/state."""
    assert ClientSettings.from_env(ENV | {"MRGC_STATE": "/s"}).state == Path("/s")
    assert ClientSettings.from_env(ENV | {"XDG_STATE_HOME": "/x"}).state == Path("/x/mrgc")
    assert ClientSettings.from_env(ENV | {"XDG_STATE_HOME": "x"}).state == Path.home() / ".local/state/mrgc"


def test_endpoints_are_boto3s_own_variables() -> None:
    """The service's variable wins over the general one."""
    aws = AwsAccess.from_env({"AWS_ENDPOINT_URL": "http://all", "AWS_ENDPOINT_URL_KMS": "http://kms"})
    assert (aws.kms_endpoint, aws.s3_endpoint) == ("http://kms", "http://all")


@pytest.mark.parametrize(
    "change",
    [
        {"model": "UPPER"},
        {"lifetime_s": 0},
        {"lifetime_s": 1_209_601},
        {"floor": 4},
        {"floor": -1},
        {"accept": "text/xml"},
    ],
)
def test_an_option_outside_the_specification_is_refused(change: dict[str, object]) -> None:
    """Options are held to the specification before a data key is made."""
    with pytest.raises(ConfigError):
        JobOptions(**({"model": "m"} | change))  # type: ignore[arg-type]
