"""Convert between tables and Parquet files in memory."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq


def read_parquet(data: bytes, schema: pa.Schema | None = None) -> pa.Table:
    """Read a Parquet file on the calling thread. Columns of `schema` that the file lacks are null.

    Reads that Arrow hands to its own threads can outlive the interpreter. Then a process that has finished its work
    ends with "terminate called without an active exception" (apache/arrow, issue 34314).

    Raises:
        pa.ArrowInvalid: the data is no Parquet file.
    """
    return pq.read_table(pa.BufferReader(data), schema=schema, use_threads=False, pre_buffer=False)


def parquet_bytes(table: pa.Table) -> bytes:
    """Return a table as a Parquet file."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()
