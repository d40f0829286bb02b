"""Input of the storm: prompts and images with planted bad rows, and unusual rows that are good.

This file alone determines the outcome of every sample, without the engine:

    prompts    RAISE, NAN, KILL, HANG, MEMORY, DEVICE, empty    quarantined
               HALVE (fits into memory only alone)              kept
               FLAT                                             rejected, with its second sample
               rows of a damaged Parquet row group              quarantined
    images     truncated, empty, not an image, deleted          quarantined
               16 bits, CMYK, animated, rotated by EXIF, a PNG with the suffix .jpg   kept
"""

from __future__ import annotations

import io
import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipelines.store.storage import Storage

GROUP_ROWS = 8  # rows per row group of the Parquet file
REGENERATE = 1
MANY_ROWS = 500
POISON = {"RAISE": 3, "NAN": 3, "KILL": 2, "HANG": 1, "MEMORY": 2, "DEVICE": 2, "": 3}  # prompts that are quarantined
BAD_IMAGES = ("truncated PNG", "truncated JPEG", "empty file", "text called .png")
ODD_IMAGES = ("16 bits", "CMYK", "animated GIF", "rotated by EXIF", "PNG called .jpg")
DELETED = "deleted in flight"


@dataclass
class Planted:
    """A job's input, and the expected outcome of each sample."""

    job: dict[str, Any]  # the spec without its output
    outcomes: dict[str, str] = field(default_factory=dict)  # sample id -> kept | rejected | quarantined
    kinds: dict[str, str] = field(default_factory=dict)  # row id -> planted kind
    to_delete: list[str] = field(default_factory=list)  # files to delete once they are planned

    def add(self, row: str, outcome: str, kind: str = "") -> None:
        """Add a row with one sample, and one more sample per round if it is rejected."""
        rounds = 1 + (REGENERATE if outcome == "rejected" else 0)
        self.outcomes.update({f"{row}/{index}": outcome for index in range(rounds)})
        if kind:
            self.kinds[row] = kind

    @property
    def quarantined(self) -> set[str]:
        """The ids of exactly the samples that must be quarantined."""
        return {sample for sample, outcome in self.outcomes.items() if outcome == "quarantined"}


def plant_prompts(storage: Storage, rows: int, seed: int, deadly: bool) -> Planted:
    """Write prompts to a text file and a Parquet file; `deadly` adds prompts that make the stand-in fail."""
    draw = random.Random(f"{seed}/prompts")
    planted = Planted({"task": "joint", "input": {"uri": storage.uri, "columns": {"prompt": "caption"}}})
    prompts = [f"a {draw.choice(['red', 'green', 'blue'])} thing, number {n}" for n in range(rows)]
    words = trouble(rows, deadly)
    in_text = rows // 2
    places = draw.sample(range(in_text), len(words))
    for place, word in zip(places, words, strict=True):
        prompts[place] = f"{word} {prompts[place]}" if word else ""
    for number, prompt in enumerate(prompts[:in_text]):
        word = prompt.split(" ")[0] if prompt.split(" ")[0].isupper() else "an empty prompt" if not prompt else ""
        outcome = {"": "kept", "HALVE": "kept", "FLAT": "rejected"}.get(word, "quarantined")
        planted.add(f"lines.txt:{number}", outcome, word)
    storage.write_bytes("lines.txt", "".join(f"{prompt}\n" for prompt in prompts[:in_text]).encode())

    groups = (rows - in_text) // GROUP_ROWS
    damaged = draw.randrange(groups)
    storage.write_bytes("table.parquet", _damaged_table(prompts[in_text:], damaged))
    for number in range(rows - in_text):
        is_bad = number // GROUP_ROWS == damaged
        row = f"table.parquet:{number}" if is_bad else f"row-{number}"
        planted.add(row, "quarantined" if is_bad else "kept", "a row of a damaged Parquet page" if is_bad else "")
    return planted


def trouble(rows: int, deadly: bool) -> list[str]:
    """Return first words of prompts, "" for an empty prompt; a short storm has one of each, without HANG."""
    counts = {**POISON, "FLAT": 6, "HALVE": 4} if deadly else {"": POISON[""]}
    if rows < MANY_ROWS:
        counts = {word: 1 for word in counts if word != "HANG"}
    return [word for word, count in counts.items() for _ in range(count)]


def plant_few(storage: Storage, rows: int) -> Planted:
    """Write prompts without faults, for the job on a full disk."""
    planted = Planted({"task": "joint", "input": {"uri": storage.uri}})
    storage.write_bytes("few.txt", "".join(f"a thing, number {n}\n" for n in range(rows)).encode())
    for number in range(rows):
        planted.add(f"few.txt:{number}", "kept")
    return planted


def _damaged_table(prompts: list[str], group: int) -> bytes:
    """Return a Parquet file in which the prompts of one row group cannot be decompressed."""
    table = pa.table({"id": [f"row-{n}" for n in range(len(prompts))], "caption": prompts})
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=GROUP_ROWS, compression="zstd", use_dictionary=False)
    data = bytearray(sink.getvalue())
    column = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(group).column(1)
    end = column.data_page_offset + column.total_compressed_size
    data[end - 40 : end] = b"\xff" * 40
    return bytes(data)


def plant_images(storage: Storage, rows: int, seed: int) -> Planted:
    """Write a folder of small images of several sizes."""
    draw = random.Random(f"{seed}/images")
    planted = Planted({"task": "depth", "input": {"uri": storage.uri}})
    count = max(1, rows // 100)
    kinds = [kind for kind in (*BAD_IMAGES, *ODD_IMAGES, DELETED) for _ in range(count)]
    kinds += [""] * (rows - len(kinds))
    draw.shuffle(kinds)
    for number, kind in enumerate(kinds):
        suffix, data = _image(kind, np.random.default_rng([seed, number]))
        name = f"{number:05d}{suffix}"
        storage.write_bytes(name, data)
        planted.add(f"{name}:0", "quarantined" if kind in BAD_IMAGES or kind == DELETED else "kept", kind)
        if kind == DELETED:
            planted.to_delete.append(name)
    return planted


def _image(kind: str, noise: np.random.Generator) -> tuple[str, bytes]:
    """Return suffix and bytes of an image of a kind."""
    height, width = (int(n) for n in noise.choice([24, 32, 40], 2))
    pixels = noise.integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    if kind == "empty file":
        return ".png", b""
    if kind == "text called .png":
        return ".png", b"this is no image\n" * 20
    if kind == "truncated PNG":
        return ".png", _encoded(image, "PNG")[:-200]
    if kind == "truncated JPEG":
        return ".jpg", _encoded(image, "JPEG")[:-150]
    if kind == "16 bits":
        return ".png", _encoded(Image.fromarray(noise.integers(0, 65536, (height, width), dtype=np.uint16)), "PNG")
    if kind == "CMYK":
        return ".jpg", _encoded(image.convert("CMYK"), "JPEG")
    if kind == "animated GIF":
        return ".gif", _encoded(image, "GIF", save_all=True, append_images=[image.rotate(90)])
    if kind == "rotated by EXIF":
        exif = Image.Exif()
        exif[0x0112] = 6
        return ".jpg", _encoded(image, "JPEG", exif=exif)
    return (".jpg" if kind == "PNG called .jpg" else ".png"), _encoded(image, "PNG")


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
