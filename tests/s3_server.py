"""An S3 server (SeaweedFS) on loopback that supports create-only writes, for tests and the storm."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class S3Server:
    """A running S3 server; endpoint and credentials are in the environment of the tests and their processes."""

    endpoint: str
    reader_key: str  # may read and list every bucket, but not write
    reader_secret: str
    filer: str  # direct access without S3: PUT /buckets/<bucket>/<key>, unsigned

    def make_bucket(self, prefix: str = "test") -> str:
        """Create a new bucket for a test; return its s3:// address."""
        import s3fs

        name = f"{prefix}-{secrets.token_hex(4)}"
        s3fs.S3FileSystem(endpoint_url=self.endpoint, use_listings_cache=False).mkdir(name)
        return f"s3://{name}"


def free_ports(count: int) -> list[int]:
    """Return ports that are free on loopback."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for socket_ in sockets:
            socket_.bind(("127.0.0.1", 0))
        return [socket_.getsockname()[1] for socket_ in sockets]
    finally:
        for socket_ in sockets:
            socket_.close()


def find_weed() -> str | None:
    """Return the path of the server's program, or None if it is not installed."""
    return shutil.which("weed") or shutil.which("weed", path=str(Path(sys.executable).parent))


def s3_settings() -> dict[str, str]:
    """Return environment variables for a new server: an endpoint on a free port, and random credentials."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_ports(1)[0]}",
        "AWS_ACCESS_KEY_ID": "test-" + secrets.token_hex(8),
        "AWS_SECRET_ACCESS_KEY": secrets.token_hex(16),
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@contextlib.contextmanager
def running_s3(
    weed: str, endpoint: str, folder: Path, preexec_fn: Callable[[], None] | None = None
) -> Iterator[S3Server]:
    """Serve at `endpoint` with the credentials of the environment; data and log are in `folder`."""
    reader_key, reader_secret = "reader-" + secrets.token_hex(8), secrets.token_hex(16)
    owner = {"accessKey": os.environ["AWS_ACCESS_KEY_ID"], "secretKey": os.environ["AWS_SECRET_ACCESS_KEY"]}
    reader = {"accessKey": reader_key, "secretKey": reader_secret}
    identities = [
        {"name": "owner", "credentials": [owner], "actions": ["Admin", "Read", "Write", "List", "Tagging"]},
        {"name": "reader", "credentials": [reader], "actions": ["Read", "List"]},
    ]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    names = ["master.port", "master.port.grpc", "volume.port", "volume.port.grpc"]
    names += ["filer.port", "filer.port.grpc", "s3.port.grpc"]
    numbers = dict(zip(names, free_ports(len(names)), strict=True))
    ports = [f"-{name}={port}" for name, port in numbers.items()]
    settings = [
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-dir={folder}",
        "-volume.max=2000",
        "-master.volumeSizeLimitMB=64",
        "-master.telemetry=false",
        "-s3",
        f"-s3.port={endpoint.rsplit(':', 1)[1]}",
        f"-s3.config={folder / 's3.json'}",
        "-s3.autoCreateBucket=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        f"-s3.localSocket={folder / 's3.sock'}",
        f"-filer.localSocket={folder / 'filer.sock'}",
    ]
    log = (folder / "log.txt").open("wb")
    command = [weed, f"-logdir={folder}", "server", *settings, *ports]
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, preexec_fn=preexec_fn)
    try:
        _wait_for_s3(endpoint, process, folder / "log.txt")
        yield S3Server(endpoint, reader_key, reader_secret, f"127.0.0.1:{numbers['filer.port']}")
    finally:
        process.kill()  # a graceful stop takes 10 seconds
        process.wait()
        log.close()


def _wait_for_s3(endpoint: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the server can store an object."""
    import s3fs

    deadline = time.monotonic() + 45
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            urllib.request.urlopen(endpoint, timeout=1).close()
        except urllib.error.HTTPError as answer:
            answer.close()  # the server answers and refuses the unsigned request
        except OSError:
            time.sleep(0.05)
            continue
        fs = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True, endpoint_url=endpoint)
        try:
            fs.exists("ready") or fs.mkdir("ready")
            fs.pipe_file("ready/object", b"1")
            return
        except OSError:
            time.sleep(0.05)
    raise TimeoutError(log.read_text()[-2000:])
