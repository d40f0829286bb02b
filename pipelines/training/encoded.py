"""Pairs from outputs of task `encode`: stored latents and text embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from jointdit.errors import InputError
from jointdit.training.pairs import Bucket, EncodedPair
from pipelines.model.identity import encoders_hash
from pipelines.records import SourceFile
from pipelines.spec.job import InputSpec
from pipelines.stages.readers import list_files
from pipelines.stages.readers.opening import open_input
from pipelines.stages.sinks.latents import ARRAYS
from pipelines.training.tables import CachedBlocks

COLUMNS = ["id", "height", "width", "tokens", "text_tokens", *ARRAYS]


class LatentPairs:
    """Encoded pairs, numbered over the rows of all files of `data.uri`."""

    def __init__(self, spec_input: InputSpec, model: str) -> None:
        """Read the layout of the files. model: the trained model.

        Raises:
            InputError: a file is not an output of task encode, or was encoded by other encoders than the model's.
        """
        self.groups: list[tuple[SourceFile, int, int]] = []  # file, row group, its rows
        for file in list_files(spec_input, "encode"):
            with open_input(file.uri, random_access=True) as stream:
                try:
                    parquet = pq.ParquetFile(stream)
                except pa.ArrowException as error:
                    raise InputError(f"data: {file.uri} is not a readable Parquet file ({error}).") from error
                lacking = [name for name in (*COLUMNS, "encoders") if name not in parquet.schema_arrow.names]
                if lacking:
                    raise InputError(
                        f"data: {file.uri} has no column {lacking[0]!r}: give an output of task encode, or use "
                        "kind: dataset or kind: table."
                    )
                sizes = [parquet.metadata.row_group(number).num_rows for number in range(parquet.num_row_groups)]
                self.groups += [(file, number, rows) for number, rows in enumerate(sizes)]
                made_by = set(parquet.read(columns=["encoders"])["encoders"].to_pylist())
            if made_by - {encoders_hash(model)}:
                raise InputError(
                    f"data: {file.uri} was encoded by another VAE or other text encoders than those of {model}: encode "
                    "with the model that you train."
                )
        self._rows = CachedBlocks(self.blocks(), self._read_block)

    def blocks(self) -> Sequence[int]:
        """Return the number of rows of each row group."""
        return [rows for _, _, rows in self.groups]

    def sizes(self) -> Sequence[Bucket]:
        """Return (height, width) in pixels of the encoded images."""
        return self._sizes

    @cached_property
    def _sizes(self) -> list[Bucket]:
        found: list[Bucket] = []
        for file, group, _ in self.groups:
            with open_input(file.uri, random_access=True) as stream:
                table = pq.ParquetFile(stream).read_row_group(group, columns=["height", "width"])
            found += list(zip(table["height"].to_pylist(), table["width"].to_pylist(), strict=True))
        return found

    def read(self, numbers: Sequence[int], bucket: Bucket) -> Sequence[EncodedPair]:
        """Read rows as tensors. Raises InputError for a pair of another size than the bucket."""
        return [self._pair(number, bucket) for number in numbers]

    def _pair(self, number: int, bucket: Bucket) -> EncodedPair:
        row, _ = self._rows.row(number)
        if (row["height"], row["width"]) != tuple(bucket):
            raise InputError(
                f"data: pair {row['id']} was encoded at height {row['height']}, width {row['width']}, which is not one "
                "of training.buckets: add it."
            )
        lengths = (row["tokens"], row["tokens"], row["text_tokens"], 1)
        arrays = [
            torch.from_numpy(np.frombuffer(row[name], "<f2").reshape(length, -1).copy())
            for name, length in zip(ARRAYS, lengths, strict=True)
        ]
        return EncodedPair(arrays[0], arrays[1], arrays[2], arrays[3][0], row["height"], row["width"])

    def _read_block(self, block: int) -> list[dict[str, Any]]:
        file, group, _ = self.groups[block]
        with open_input(file.uri, random_access=True) as stream:
            rows: list[dict[str, Any]] = pq.ParquetFile(stream).read_row_group(group, columns=COLUMNS).to_pylist()
        return rows
