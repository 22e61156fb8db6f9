"""Takes the application's place in QEMU's nitro-enclave machine and prints what its NSM says, as JSON.

That NSM signs nothing, so the enclave's own application ends there; this one asks and shows.
"""

from __future__ import annotations

import fcntl
import json
import os
from ctypes import addressof, create_string_buffer
from struct import pack, unpack

import cbor2

from enclave.nsm import NsmDevice

device = os.open("/dev/nsm", os.O_RDWR)


def ask(request: object) -> object:
    """Return the NSM's answer to any request."""
    data = cbor2.dumps(request)
    outgoing, incoming = create_string_buffer(data, len(data)), create_string_buffer(0x3000)
    raw = bytearray(pack("@QQQQ", addressof(outgoing), len(data), addressof(incoming), 0x3000))
    fcntl.ioctl(device, 0xC0200A00, raw, True)
    return cbor2.loads(incoming.raw[: unpack("@QQQQ", raw)[3]])


found = {
    "document": NsmDevice().attest(public_key=b"key", user_data=b"data", nonce=b"nonce").hex(),
    "random": len(NsmDevice().random(300)),
    "module": ask("DescribeNSM")["DescribeNSM"],  # type: ignore[index]
    "extend": ask({"ExtendPCR": {"index": 0, "data": b"x"}}),
    "pcr0": ask({"DescribePCR": {"index": 0}})["DescribePCR"]["data"].hex(),  # type: ignore[index]
}
print(json.dumps(found))  # noqa: T201
