"""Runs inside the image's own files: imports all of the application, and calls KMS where there is no network.

Its source is given to the image's Python by test_image.py; nothing else of the tests is there.
"""

from __future__ import annotations

import importlib
import os
import warnings

import boto3.session
import botocore.exceptions

import enclave
import mrgc.attest
import mrgc.wire

for package in (enclave, mrgc.attest, mrgc.wire):
    for name in os.listdir(package.__path__[0]):  # noqa: PTH208  pathlib's own imports are under test as well
        if name.endswith(".py"):
            importlib.import_module(f"{package.__name__}.{name[:-3]}")

session = boto3.session.Session("key", "secret", region_name="eu-west-1")
try:
    session.client("kms", endpoint_url="https://127.0.0.1:1").decrypt(CiphertextBlob=b"x")
except botocore.exceptions.EndpointConnectionError:
    print("no network")  # noqa: T201
warnings.warn("shown", stacklevel=1)
