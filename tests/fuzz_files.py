"""Random input files of every format, with the expected rows if they are known.

A case depends only on its kind and seed. `rows[i]` is the expected prompt of row i, or None for a bad row. The reader
may refuse a whole file only if `may_refuse`.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.fuzz_columns import array, value
from tests.fuzz_texts import WORDS, prompt

ENCODINGS = [
    "utf-8",
    "utf-8-sig",
    "utf-16",
    "utf-16-le",
    "utf-16-be",
    "utf-32",
    "utf-32-be",
    "latin-1",
    "cp1252",
    "shift_jis",
]


@dataclass(frozen=True)
class Case:
    """A file, the task, and the expected rows."""

    name: str
    data: bytes
    task: str = "joint"
    rows: list[str | None] | None = None  # None if not known
    may_refuse: bool = True
    fields: dict[str, Any] = field(default_factory=dict)  # fields of the spec's input


def expected(text: str | None) -> str | None:
    """Return the expected prompt of a text, or None if the row is bad."""
    return text if text is not None and text.strip() and "\0" not in text else None


def zipped(random: random.Random, name: str, data: bytes) -> tuple[str, bytes]:
    return (f"{name}.gz", gzip.compress(data, mtime=0)) if random.random() < 0.2 else (name, data)


# --- text formats with known rows ------------------------------------------------------------------------------------


def text_lines(random: random.Random) -> Case:
    prompts = [prompt(random).replace("\n", " ") for _ in range(random.randint(1, 12))]
    end, encoding = random.choice(["\n", "\n", "\r\n"]), random.choice(ENCODINGS[:2] * 6 + ENCODINGS)
    name, data = zipped(random, "a.txt", encode("".join(text + end for text in prompts), encoding))
    rows = [expected(text.rstrip("\r")) for text in prompts]
    rows = [None if text and "\r" in text else text for text in rows]
    is_odd = "\0" in "".join(prompts)  # a short text with NULs may be read as UTF-16
    return Case(name, data, rows=rows, may_refuse=is_odd or not encoding.startswith("utf-8"))


def json_lines(random: random.Random) -> Case:
    prompts = [prompt(random) for _ in range(random.randint(1, 12))]
    encoding, lines, rows = random.choice(ENCODINGS[:2] * 6 + ENCODINGS), [], []
    for number, text in enumerate(prompts):
        pairs = [("prompt", text), ("id", f"r{number}"), ("other", random.choice([1, None, [1], {"prompt": "x"}]))]
        twice = random.random() < 0.1
        pairs += [random.choice(pairs)] if twice else []
        random.shuffle(pairs)
        plain = random.random() < 0.5
        lines.append("{" + ", ".join(f'"{k}": {json.dumps(v, ensure_ascii=plain)}' for k, v in pairs) + "}")
        rows.append(None if twice else expected(text))
    ends = random.choice(["\n", "\r\n"])
    name, data = zipped(random, "a.jsonl", encode(ends.join(lines), encoding))
    return Case(name, data, rows=rows, may_refuse=not encoding.startswith("utf-8") or not any(rows))


def csv_records(random: random.Random) -> Case:
    prompts = [prompt(random) for _ in range(random.randint(1, 12))]
    width, encoding = random.randint(1, 3), random.choice(ENCODINGS[:2] * 6 + ENCODINGS)
    header = ["prompt", "note", "more"][:width]
    random.shuffle(header)
    sink = io.StringIO(newline="")
    quoting = random.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
    end = random.choice(["\n", "\r\n"])
    writer = csv.writer(sink, quoting=quoting, lineterminator=end)
    writer.writerow(header)
    rows: list[str | None] = []
    for text in prompts:
        record = [text if name == "prompt" else random.choice(WORDS) for name in header]
        ragged = random.random() < 0.1
        writer.writerow([*record, "beyond"] if ragged else record)
        rows.append(None if ragged else expected(text))
    text = sink.getvalue()
    name, data = zipped(random, "a.csv", encode(text, encoding))
    # Lines end at line feeds. An unquoted carriage return does not end a row.
    sure = "\r" not in text.replace(end, "") and "\ufeff" not in text and "\0" not in text
    return Case(name, data, rows=rows if sure else None, may_refuse=not encoding.startswith("utf-8") or not sure)


def encode(text: str, encoding: str) -> bytes:
    """Encode a text, as UTF-8 if the encoding lacks a character."""
    try:
        return text.encode(encoding)
    except UnicodeEncodeError:
        return text.encode("utf-8")


def archive(random: random.Random) -> Case:
    prompts = [prompt(random) for _ in range(random.randint(1, 8))]
    sink = io.BytesIO()
    formats = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
    with tarfile.open(fileobj=sink, mode="w", format=random.choice(formats)) as tar:
        for number, text in enumerate(prompts):
            kind = random.choice(["txt", "json"])
            data = text.encode() if kind == "txt" else json.dumps({"prompt": text}).encode()
            member = tarfile.TarInfo(f"{random.choice(['', 'a/', 'ü/', 'x' * 90 + '/'])}{number}.{kind}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    rows = [expected(text) for text in prompts]  # texts of .txt members are stripped
    return Case("a.tar", sink.getvalue(), rows=rows, may_refuse=False)


def parquet(random: random.Random) -> Case:
    count = random.randint(1, 6)
    columns: list[pa.Array] = []
    names = ["id", "prompt", "image", "depth"]
    for name in names:
        kind, draw = value(random) if random.random() < 0.5 or name in ("image", "depth") else (pa.string(), None)
        draw_it = draw or (lambda: prompt(random))
        made = array(kind, [None if random.random() < 0.1 else draw_it() for _ in range(count)])
        if random.random() < 0.2 and (pa.types.is_string(made.type) or pa.types.is_integer(made.type)):
            made = made.dictionary_encode()
        columns.append(made)
    prompts = columns[1].to_pylist() if is_text(columns[1].type) else [None] * count
    if random.random() < 0.1:
        names.append(random.choice(names))
        columns.append(columns[0])
    sink = io.BytesIO()
    try:
        pq.write_table(pa.Table.from_arrays(columns, names=names), sink, row_group_size=random.randint(1, 4))
    except pa.ArrowException:  # Parquet has no such value
        return parquet(random)
    task = random.choice(["joint", "joint", "depth", "depth-to-image"])
    fields = {"depth": {"kind": "metric"}} if task == "depth-to-image" else {}
    rows = [expected(text) for text in prompts] if task == "joint" else None
    return Case("a.parquet", sink.getvalue(), task, rows, fields=fields)


def is_text(kind: pa.DataType) -> bool:
    """Return whether a column type holds texts."""
    return str(kind).replace("dictionary<values=", "").startswith(("string", "large_string"))


# --- images, and damage ---------------------------------------------------------------------------------------------


def image(random: random.Random) -> Case:
    kind = random.choice(["png", "jpg", "webp", "tiff", "bmp", "gif", "ppm", "avif"])
    mode = random.choice(["RGB", "RGB", "L", "RGBA", "P", "I;16", "1"])
    made = Image.fromarray(np.random.default_rng(random.randrange(99)).integers(0, 255, (7, 9, 3), np.uint8))
    made = made.convert("L").convert("I").convert("I;16") if mode == "I;16" else made.convert(mode)
    sink = io.BytesIO()
    try:
        made.save(sink, "JPEG" if kind == "jpg" else kind.upper())
    except (OSError, KeyError, ValueError):  # the format has no such mode
        made.convert("RGB").save(sink, "JPEG" if kind == "jpg" else kind.upper())
    return Case(f"a.{kind}", sink.getvalue(), "depth")


def depth_map(random: random.Random) -> Case:
    dtype = random.choice(["<f4", ">f8", "<u2", "|i1", "<f2", "|b1", "<c8", "|S3", "<M8[s]"])
    shape = random.choice([(5, 6), (1, 5, 6), (5, 6, 1), (5,), (), (0, 5), (2, 3, 4)])
    data = np.frombuffer(random.randbytes(2000), np.uint8)[: int(np.prod(shape, dtype=int)) * np.dtype(dtype).itemsize]
    sink = io.BytesIO()
    np.save(sink, data.view(dtype).reshape(shape) if data.size else np.zeros(shape, dtype))
    fields = {"prompt": "p", "depth": {"kind": random.choice(["metric", "disparity"])}}
    return Case("a.npy", sink.getvalue(), "depth-to-image", fields=fields)


WHOLE = (text_lines, json_lines, csv_records, archive, parquet, image, depth_map)
INSERTED = [
    b"\0",
    b'"',
    b"\n",
    b"\r",
    b",",
    b"{",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"[" * 5000,
    b"9" * 5000,
    bytes(512),
]


def damaged(random: random.Random) -> Case:
    """Return a valid file of any kind with some mutations."""
    case = random.choice(WHOLE)(random)
    data = bytearray(case.data)
    for _ in range(random.choice([1, 1, 2, 8])):
        place, length = random.randrange(len(data) + 1), random.choice([1, 2, 16, 512])
        match random.randrange(6):
            case 0:
                data[place : place + length] = random.randbytes(length)
            case 1:
                del data[place:]
            case 2:
                del data[place : place + length]
            case 3:
                data[place:place] = random.choice(INSERTED)
            case 4:
                data[place:place] = data[place : place + length]
            case _:
                data[place : place + 1] = bytes(
                    [(data[place] if place < len(data) else 0) ^ (1 << random.randrange(8))]
                )
    return Case(case.name, bytes(data), case.task, fields=case.fields)


NAMES = ". .. / // ~ a ok.png pipe loop %2e%2e ? # * [a] ü @ u:p@ local: :// /etc /dev/zero /dev/null"
ROOTS = "file:// file:/// s3:// gs:// abfs:// http:// memory:// /proc/kmsg /proc/self/mem /proc/self/fd/0"
PARTS = [*NAMES.split(), *ROOTS.split(), "x" * 300, "x/" * 60, "\0", "\n", " ", "\ud800", "\u202e"]


def addresses(random: random.Random) -> Case:
    """Return a table with image addresses of any form, each followed by a valid one."""
    lines = []
    for _ in range(random.randint(1, 8)):
        parts = "".join(random.choice(PARTS) for _ in range(random.choice([1, 2, 3, 60])))
        address: Any = random.choice(
            [parts, parts, parts, 5, 1.5, None, [], [[1]], {"bytes": 1}, {"path": parts}, True]
        )
        lines += [json.dumps({"image": address}), '{"image": "ok.png"}']
    return Case("a.jsonl", "\n".join(lines).encode(), "depth", may_refuse=False)


KINDS: tuple[Callable[[random.Random], Case], ...] = (*WHOLE, damaged, addresses)


def make(kind: str, seed: int) -> Case:
    """Return the case of a kind and seed."""
    return next(make_case for make_case in KINDS if make_case.__name__ == kind)(random.Random(f"{kind} {seed}"))
