"""Joins over whole datasets in bounded memory, with DuckDB.

A database lives as long as its `with` block. Tables, sorts and hash tables beyond the memory limit are in a temporary
folder, which is removed at the end. Extensions are neither installed nor loaded, so DuckDB never uses the network.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import duckdb

from jointdit.errors import PermanentError

MEMORY = 1 << 30  # bytes
BESIDE_OBJECTS = 1 << 29  # bytes, where the caller holds as much in Python
MEMORY_PER_THREAD = 1 << 28  # bytes; with less, joins and sorts that spill run out of memory
DATABASE = "joins.duckdb"


@contextlib.contextmanager
def joins(memory: int = MEMORY, threads: int | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
    """Yield a connection to an empty database.

    SQL reads tables, files and registered objects only: a name in it never means a Python variable.

    Args:
        memory: Limit in bytes of what DuckDB allocates.
        threads: Number of threads; by default one for each core, as far as the memory allows.

    Raises:
        PermanentError: the memory or the temporary folder is too small.
    """
    with tempfile.TemporaryDirectory(prefix="jointdit-joins-") as folder:
        connection = duckdb.connect(
            str(Path(folder) / DATABASE),
            config={
                "memory_limit": f"{memory}B",
                "threads": str(threads or max(1, min(_cores(), memory // MEMORY_PER_THREAD))),
                "temp_directory": str(Path(folder) / "spilled"),
                "preserve_insertion_order": "false",
                "autoinstall_known_extensions": "false",
                "autoload_known_extensions": "false",
                "allow_community_extensions": "false",
                "allow_extension_repositories": "forbidden",
                "python_enable_replacements": "false",
            },
        )
        try:
            connection.execute("set enable_progress_bar = false; set fsync_mode = 'NONE'")
            yield connection
        except (duckdb.OutOfMemoryException, duckdb.IOException) as error:
            if isinstance(error, duckdb.IOException) and folder not in str(error):
                raise  # of a file that the caller reads or writes
            raise PermanentError(
                f"joining the dataset needs more than {memory >> 20} MB of memory, or more room in {folder}: make "
                "room, or set TMPDIR to a larger disk."
            ) from error
        finally:
            connection.close()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
