"""What a row is blamed for, and what it is not: a fault of the node or the store is never the row's."""

from __future__ import annotations

import errno
import io
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from jointdit.errors import RowError, StoreError
from pipelines.stages.row_boundary import explain_row_failure
from pipelines.store.errors import TransientError

SHORT_OF_MEMORY = """
import resource, sys
from pipelines.stages.readers.images import decode_image
data = open(sys.argv[1], "rb").read()
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, ((pages << 12) + (20 << 20),) * 2)
try:
    decode_image(data)
except MemoryError:
    print("the node's")
"""


def explain(error: Exception) -> tuple[str, str]:
    try:
        raise error
    except Exception as caught:  # noqa: BLE001 - as at the boundary of a row
        return explain_row_failure(caught, "encoding it")


def test_an_error_of_a_row_is_one_sentence() -> None:
    assert explain(RowError("image is empty.")) == ("image is empty.", "")
    sentence, trace = explain(OverflowError("too\nlarge"))
    assert sentence == "encoding it failed, OverflowError: too large"
    assert "OverflowError" in trace


@pytest.mark.parametrize("error", [StoreError("no access."), TransientError("5xx."), MemoryError()])
def test_an_error_of_the_store_or_the_node_is_raised(error: Exception) -> None:
    with pytest.raises(type(error)):
        explain(error)


def test_a_full_disk_is_a_transient_error() -> None:
    with pytest.raises(TransientError, match="no space left on device"):
        explain(OSError(errno.ENOSPC, "x"))


def test_an_image_that_does_not_fit_into_memory_is_not_a_bad_row(tmp_path: Path) -> None:
    """The shard is tried again; if it goes on, the row is searched for."""
    buffer = io.BytesIO()
    Image.new("RGB", (4000, 4000)).save(buffer, format="PNG", compress_level=1)
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    command = [sys.executable, "-c", SHORT_OF_MEMORY, str(tmp_path / "a.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "the node's\n", done.stderr
