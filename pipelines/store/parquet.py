"""A Parquet file in memory -> a table."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq


def read_parquet(data: bytes, schema: pa.Schema | None = None) -> pa.Table:
    """Read it on the calling thread; columns that the file lacks are null where a schema asks for them.

    Reads that Arrow hands to threads of its own can outlive the interpreter, and then a process that has done its work
    ends with "terminate called without an active exception" (apache/arrow, issue 34314).

    Raises:
        pa.ArrowInvalid: no Parquet file.
    """
    return pq.read_table(pa.BufferReader(data), schema=schema, use_threads=False, pre_buffer=False)


def parquet_bytes(table: pa.Table) -> bytes:
    """A table as the bytes of a Parquet file."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()
