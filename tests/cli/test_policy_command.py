"""`mrgc policy`: what it prints, and what it refuses to print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest

from mrgc.measurements import extend_zero
from mrgc.policy import key_policy
from tests.cli.in_process import Done, mrgc
from tests.policy.terms import PCRS, SERVICE, TENANT

ACCOUNT: Final = "111122223333"
TERMS: Final[dict[str, Any]] = {
    "pcr0": PCRS[0],
    "tenant": "acme",
    "tenant_principal": TENANT,
    "service_role": SERVICE,
}
VALUES: Final = {"HashAlgorithm": "Sha384 { ... }", **{f"PCR{index}": PCRS[index].hex() for index in (0, 1, 2, 8)}}


@pytest.fixture
def values(tmp_path: Path) -> str:
    """pcr-values.json of a signed image."""
    file = tmp_path / "pcr-values.json"
    file.write_text(json.dumps({"Measurements": VALUES}))
    return str(file)


def policy(values: str, *more: str) -> Done:
    """Run the command with everything it needs, and more."""
    return mrgc("policy", "--pcrs", values, "--tenant", "acme", "--tenant-principal", TENANT, "--role", SERVICE, *more)


def printed(done: Done) -> dict[str, Any]:
    """Return the policy of a command that went well."""
    assert (done.code, done.err) == (0, "")
    found: dict[str, Any] = json.loads(done.out)
    return found


def test_the_policy_of_one_image_is_printed(values: str) -> None:
    """PCR0, and not PCR2, is what ImageSha384 is compared with."""
    found = printed(policy(values))
    assert found == key_policy(**TERMS)
    assert PCRS[0].hex() in json.dumps(found)
    assert PCRS[2].hex() not in json.dumps(found)


@pytest.mark.parametrize(
    ("more", "terms"),
    [
        (["--pcr8"], {"further_pcrs": {8: PCRS[8]}}),
        (["--pcr3", PCRS[3].hex()], {"further_pcrs": {3: PCRS[3]}}),
        (["--pcr3", SERVICE], {"further_pcrs": {3: extend_zero(SERVICE)}}),
        (["--pcr4", PCRS[4].hex().upper()], {"further_pcrs": {4: PCRS[4]}}),
        (["--pcr4", "i-0a22e5c5f24d22174"], {"further_pcrs": {4: extend_zero("i-0a22e5c5f24d22174")}}),
        (
            ["--pcr8", "--pcr3", PCRS[3].hex(), "--pcr4", PCRS[4].hex()],
            {"further_pcrs": {index: PCRS[index] for index in (3, 4, 8)}},
        ),
        (["--json-protocol"], {"json_protocol": True}),
    ],
)
def test_what_is_asked_for_is_added(values: str, more: list[str], terms: dict[str, Any]) -> None:
    """Each option changes the policy in its own way, and none is a default."""
    assert printed(policy(values, *more)) == key_policy(**TERMS | terms) != key_policy(**TERMS)


def test_a_whole_account_may_keep_the_key(values: str) -> None:
    """--account names the account's root in place of one principal."""
    done = mrgc("policy", "--pcrs", values, "--tenant", "acme", "--account", ACCOUNT, "--role", SERVICE)
    assert printed(done) == key_policy(**TERMS | {"tenant_principal": f"arn:aws:iam::{ACCOUNT}:root"})


def test_the_tenant_may_come_from_the_environment(values: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in every other command; the option wins."""
    monkeypatch.setenv("MRGC_TENANT", "globex")
    arguments = ["policy", "--pcrs", values, "--tenant-principal", TENANT, "--role", SERVICE]
    assert printed(mrgc(*arguments)) == key_policy(**TERMS | {"tenant": "globex"})
    assert printed(mrgc(*arguments, "--tenant", "acme")) == key_policy(**TERMS)


@pytest.mark.parametrize(
    "content",
    [
        {"PCR3": PCRS[3].hex(), "PCR4": PCRS[4].hex()},
        {"PCR0": "00" * 48, "PCR3": PCRS[3].hex()},
        {"PCR0": "00" * 48, "PCR1": "00" * 48, "PCR2": "00" * 48},
        {"PCR0": PCRS[0].hex(), "PCR1": "00" * 48},
        {"PCR0": "ab" * 32},
        {"PCR0": "ab" * 64},
        {"PCR2": PCRS[2].hex()},
    ],
)
def test_measurements_that_would_admit_too_much_are_refused(tmp_path: Path, content: dict[str, str]) -> None:
    """Statement 6: PCR3 and PCR4 alone, zeros and unknown lengths are no policy."""
    file = tmp_path / "pcr-values.json"
    file.write_text(json.dumps(content))
    done = policy(str(file))
    assert (done.code, done.out) == (10, "")
    assert done.err.startswith(f"mrgc: config: {file}: ")


def test_pcr8_of_an_unsigned_image_is_refused(tmp_path: Path) -> None:
    """Neither an absent nor a zero PCR8 can be pinned: every unsigned image has it."""
    for content in ({"PCR0": PCRS[0].hex()}, {"PCR0": PCRS[0].hex(), "PCR8": "00" * 48}):
        file = tmp_path / "pcr-values.json"
        file.write_text(json.dumps(content))
        done = policy(str(file), "--pcr8")
        assert (done.code, done.out) == (10, "")
        assert "not signed" in done.err


@pytest.mark.parametrize(
    "more",
    [
        ["--pcr3", "00" * 48],
        ["--pcr4", "00" * 48],
        ["--pcr3", ""],
        ["--pcr4", ""],
        ["--pcr3", "ab" * 32],
        ["--pcr3", "arn:aws:iam::777788889999:role/*"],
        ["--pcr4", "i-0"],
        ["--account", ACCOUNT],
        ["--tenant", ""],
        ["--tenant", "Acme"],
        ["--role", ""],
        ["--role", "arn:aws:iam::777788889999:root"],
        ["--role", "arn:aws:iam::777788889999:role/*"],
        ["--role", TENANT],
        ["--tenant-principal", ""],
        ["--tenant-principal", "*"],
        ["--tenant-principal", "arn:aws:sts::777788889999:assumed-role/x/y"],
        ["--debug"],
        ["check"],
    ],
)
def test_wrong_usage_prints_no_policy(values: str, more: list[str]) -> None:
    """Wildcards, empty variables and options that contradict one another end with 2."""
    done = policy(values, *more)
    assert (done.code, done.out) == (2, ""), done
    assert "Traceback" not in done.err


@pytest.mark.parametrize("missing", ["--pcrs", "--tenant", "--role", "--tenant-principal"])
def test_nothing_needed_is_guessed(values: str, missing: str) -> None:
    """Each of the four must be said."""
    given = {"--pcrs": values, "--tenant": "acme", "--role": SERVICE, "--tenant-principal": TENANT}
    done = mrgc("policy", *(word for name, value in given.items() if name != missing for word in (name, value)))
    assert (done.code, done.out) == (2, "")


@pytest.mark.parametrize("account", ["", "11112222333", "1111222233334", "111122223333 ", "*"])
def test_an_account_is_twelve_digits(values: str, account: str) -> None:
    """Anything else is wrong usage."""
    done = mrgc("policy", "--pcrs", values, "--tenant", "acme", "--account", account, "--role", SERVICE)
    assert (done.code, done.out) == (2, "")


def test_a_file_that_is_not_there_is_a_matter_of_configuration(tmp_path: Path) -> None:
    """The file is named, and nothing is printed."""
    done = policy(str(tmp_path / "absent.json"))
    assert (done.code, done.out) == (10, "")
    assert "absent.json: No such file" in done.err


def test_check_needs_to_know_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a key or a tenant, or with a malformed one, nobody is asked."""
    for arguments in (
        [],
        ["--key", "alias/acme", "--tenant", "acme"],
        ["--key", "arn:aws:kms:eu-west-1:111122223333:alias/acme", "--tenant", "acme"],
        ["--key", "", "--tenant", "acme"],
        ["--key", "arn:aws:kms:eu-west-1:111122223333:key/x"],
        ["--key", "arn:aws:kms:eu-west-1:111122223333:key/x", "--tenant", "acme", "--role", ""],
        ["--key", "arn:aws:kms:eu-west-1:111122223333:key/x", "--tenant", "acme", "--account", "1"],
        ["--key", "arn:aws:kms:eu-west-1:111122223333:key/x", "--tenant", "acme", "--account", ACCOUNT,
         "--tenant-principal", TENANT],
    ):  # fmt: skip
        monkeypatch.delenv("MRGC_TENANT", raising=False)
        done = mrgc("policy", "check", *arguments)
        assert (done.code, done.out) == (2, ""), arguments
