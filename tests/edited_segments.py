"""Change what the segments of a version say, with hashes that agree, so that only the content is wrong."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.ledger.entries import sha256
from pipelines.store.parquet import parquet_bytes
from pipelines.store.storage import Storage

Rows = list[dict[str, Any]]


def edit_segments(
    storage: Storage,
    samples: Callable[[Rows], object] | None = None,
    shards: Callable[[Rows], object] | None = None,
    number: int = 1,
) -> None:
    """Apply changes to the rows of the samples and of the shards in each segment of a version."""
    name = f"_versions/{number:06d}/version.json"
    fields = json.loads(storage.read_bytes(name))
    for segment in fields["segments"]:
        for prefix, change in (("", samples), ("shards_", shards)):
            if change is not None:
                table = pq.read_table(io.BytesIO(storage.read_bytes(segment[f"{prefix}path"])))
                rows = table.to_pylist()
                change(rows)
                data = parquet_bytes(pa.Table.from_pylist(rows, schema=table.schema))
                storage.write_bytes(segment[f"{prefix}path"], data)
                segment[f"{prefix}sha256"] = sha256(data)
    storage.write_bytes(name, json.dumps(fields).encode())
