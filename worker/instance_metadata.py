"""A client of the EC2 instance metadata service, version 2: a token, then one short text per path.

Rules: Amazon EC2 User Guide, "Use the Instance Metadata Service to access instance metadata". No wait is longer than
CALL_S, an answer is read to MAX_ANSWER_BYTES at most, and redirections and proxies are not followed.

May import: the standard library. Called by worker.departure.
"""

from __future__ import annotations

import http.client
import re
from typing import Final
from urllib.parse import urlsplit

#: Of connecting, and of each wait for more of an answer. The service answers within milliseconds, or there is none.
CALL_S: Final = 1.0
MAX_ANSWER_BYTES: Final = 4_096
#: Life of a token, the longest that the service grants.
TOKEN_TTL_S: Final = 21_600

_TOKEN: Final = re.compile(r"[!-~]{1,1024}")


class MetadataError(OSError):
    """Raised when the service gives no answer, or one that is not its own."""


class InstanceMetadata:
    """One instance's metadata. Used by one thread at a time.

    Args:
        endpoint: http://host[:port].
    """

    def __init__(self, endpoint: str) -> None:
        self._address = urlsplit(endpoint).netloc
        self._token: str | None = None

    def get(self, path: str) -> str | None:
        """Return the text at a path below latest/meta-data; None where there is none.

        Raises:
            MetadataError: no answer in time, or not one of this service's.
        """
        status, text = self._read(path)
        if status == http.client.UNAUTHORIZED:
            # The token's time is over, or the instance was started anew.
            self._token = None
            status, text = self._read(path)
        if status == http.client.NOT_FOUND:
            return None
        if status != http.client.OK:
            raise MetadataError(f"metadata service answers {status}")
        return text

    def _read(self, path: str) -> tuple[int, str]:
        self._token = self._token or self._new_token()
        return self._call("GET", f"/latest/meta-data/{path}", {"X-aws-ec2-metadata-token": self._token})

    def _new_token(self) -> str:
        headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_TTL_S)}
        status, text = self._call("PUT", "/latest/api/token", headers)
        if status != http.client.OK or not _TOKEN.fullmatch(text):
            raise MetadataError(f"metadata service gives no token: {status}")
        return text

    def _call(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        connection = http.client.HTTPConnection(self._address, timeout=CALL_S)
        try:
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            data = answer.read(MAX_ANSWER_BYTES + 1)
        except (OSError, http.client.HTTPException) as err:
            raise MetadataError("metadata service does not answer") from err
        finally:
            connection.close()
        if len(data) > MAX_ANSWER_BYTES:
            raise MetadataError("metadata service answers too much")
        return answer.status, data.decode("latin-1")
