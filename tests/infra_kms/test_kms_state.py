"""What survives: keys and policies of the one-machine KMS, through SIGKILL and restart."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import BotoCoreError

from infra.durable_file import replace_file
from infra.kms_config import KmsConfig, Principal, load_config, write_config
from infra.kms_keys import Key, KeyStore, new_key_id, new_material
from mrgc.errors import ConfigError
from tests.infra_kms.conftest import ACME, JOB, PCR0, SERVICE, Enclave, Kms, serving
from tests.waiting import until


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def decrypted(kms: Kms, key_arn: str, blob: bytes) -> bytes:
    """Decrypt as the tenant."""
    answer = kms.client(ACME).decrypt(KeyId=key_arn, CiphertextBlob=blob, EncryptionContext=JOB)
    plaintext: bytes = answer["Plaintext"]
    return plaintext


def test_a_killed_server_comes_back_on_its_port_with_every_key_and_policy(
    tmp_path: Path, config: KmsConfig, enclave: Enclave
) -> None:
    """SIGKILL while keys are being made: every key whose creation was answered is there, policies included."""
    fixed = replace(config, port=free_port())
    made: list[tuple[str, bytes]] = []
    with serving(tmp_path, fixed) as kms:

        def make_keys() -> None:
            client = kms.client(ACME)
            try:
                while True:
                    key_arn = kms.tenant_key()
                    answer = client.encrypt(KeyId=key_arn, Plaintext=b"kept", EncryptionContext=JOB)
                    made.append((key_arn, answer["CiphertextBlob"]))
            except BotoCoreError:
                return  # the kill

        makers = [threading.Thread(target=make_keys) for _ in range(2)]
        for maker in makers:
            maker.start()
        until(lambda: len(made) >= 6, within_s=30, what="six keys made")
        kms.process.send_signal(signal.SIGKILL)
        for maker in makers:
            maker.join(20)
        ca = Path(kms.ready["ca"]).read_bytes()
    with serving(tmp_path, fixed) as again:
        assert again.ready["port"] == fixed.port
        assert Path(again.ready["ca"]).read_bytes() == ca
        assert {decrypted(again, key_arn, blob) for key_arn, blob in made} == {b"kept"}
        answer = again.client(SERVICE).decrypt(
            KeyId=made[-1][0], CiphertextBlob=made[-1][1], EncryptionContext=JOB, Recipient=enclave.recipient()
        )
        assert "CiphertextForRecipient" in answer
        policy = again.client(ACME).get_key_policy(KeyId=made[-1][0])["Policy"]
        assert PCR0.hex() in policy


def test_sigterm_ends_the_server_at_once_with_connections_open(tmp_path: Path, config: KmsConfig) -> None:
    """A client's idle keep-alive connection does not hold up the stop."""
    with serving(tmp_path, config) as kms:
        kms.client(ACME).generate_random(NumberOfBytes=1)
        kms.process.terminate()
        assert kms.process.wait(5) == 0


@pytest.mark.parametrize("fault", ["no config", "no root", "damaged root", "damaged key", "damaged ca", "port taken"])
def test_a_server_that_cannot_serve_says_so_and_ends(tmp_path: Path, config: KmsConfig, fault: str) -> None:
    """It does not start with less than it had."""
    state = config.state
    (state / "keys").mkdir(parents=True)
    faulty = config
    if fault in {"no root", "damaged root"}:
        faulty = replace(config, nsm_root=tmp_path / "root.pem")
    if fault == "damaged root":
        (tmp_path / "root.pem").write_text("nothing")
    if fault == "damaged key":
        (state / "keys" / "1234.json").write_text('{"arn": "x"}')
    if fault == "damaged ca":
        (state / "ca-key.pem").write_text("nothing")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        if fault == "port taken":
            faulty = replace(config, port=taken.getsockname()[1])
        write_config(tmp_path / "kms.json", faulty)
        file = tmp_path / ("missing.json" if fault == "no config" else "kms.json")
        command = [sys.executable, "-m", "infra.local_kms", "--config", str(file), "--ready-file", str(tmp_path / "r")]
        done = subprocess.run(command, capture_output=True, timeout=30, check=False)
    assert done.returncode == 1
    assert b"kms cannot start" in done.stderr
    assert b"Traceback" not in done.stderr
    assert not (tmp_path / "r").exists()


def test_configurations_are_read_back_as_written(tmp_path: Path, config: KmsConfig) -> None:
    """What the stack's set-up writes is what the server reads; only its owner may read it."""
    write_config(tmp_path / "c.json", config)
    assert load_config(tmp_path / "c.json") == config
    assert (tmp_path / "c.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "change",
    [{"host": "0.0.0.0"}, {"regions": ()}, {"regions": ("EU",)}, {"regions": ("a/b/c",)}],
)
def test_configurations_that_must_not_be_are_refused(config: KmsConfig, change: dict[str, Any]) -> None:
    """A stand-in that holds keys in the clear never listens beyond this machine."""
    with pytest.raises(ConfigError):
        replace(config, **change)


@pytest.mark.parametrize("arn", ["", "acme", "arn:aws:iam::1:user/acme", "arn:aws:iam::111122223333:root", "*"])
def test_principals_are_users_or_roles(arn: str) -> None:
    """No configured caller is a whole account or a wildcard."""
    with pytest.raises(ConfigError):
        Principal(arn, "secret")


def test_key_material_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    """Key files are 0600, and their material is in no representation."""
    store = KeyStore(tmp_path / "keys")
    arn = f"arn:aws:kms:eu-west-1:111122223333:key/{new_key_id(multi_region=False)}"
    key = Key(arn, "{}", created_s=1.0, multi_region=False, description="", material=new_material())
    store.create(key)
    (file,) = (tmp_path / "keys").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert "material" not in repr(key)
    assert KeyStore(tmp_path / "keys").get(key.key_id, "eu-west-1") == key


def test_a_replica_is_a_file_of_its_own(tmp_path: Path) -> None:
    """A multi-Region key and its replica share their id; both are there after a restart."""
    store = KeyStore(tmp_path / "keys")
    arn = f"arn:aws:kms:eu-west-1:111122223333:key/{new_key_id(multi_region=True)}"
    key = Key(arn, "{}", created_s=1.0, multi_region=True, description="", material=new_material())
    replica = key.replica("us-east-1", policy="{}", created_s=2.0, description="")
    for each in (key, replica):
        store.create(each)
    store.put_policy(replica, '{"of": "the replica"}')
    read = KeyStore(tmp_path / "keys")
    assert read.get(key.key_id, "eu-west-1") == key
    found = read.get(key.key_id, "us-east-1")
    assert found is not None
    assert (found.policy, found.material, found.primary_arn) == ('{"of": "the replica"}', key.material, arn)


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    """A write that fails leaves the old content, and nothing beside it."""
    target = tmp_path / "file"
    replace_file(target, b"old")
    with pytest.raises(TypeError):
        replace_file(target, "text")  # type: ignore[arg-type]
    assert target.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    replace_file(target, json.dumps({}).encode(), mode=0o644)
    assert target.stat().st_mode & 0o777 == 0o644
