"""Random columns of any Arrow type, also with values that Python cannot represent."""

from __future__ import annotations

import decimal
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from tests.fuzz_texts import prompt

Draw = Callable[[], Any]


def simple_values(random: random.Random) -> list[tuple[pa.DataType, Draw]]:
    """Return types that are not nested, each with a function that draws a value."""

    def whole(bits: int) -> int:
        return random.randint(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)

    times = [pa.timestamp(unit, zone) for unit in ("s", "us", "ns") for zone in (None, "UTC", "Not/There")]
    return [
        *((kind, lambda: prompt(random)) for kind in (pa.string(), pa.large_string(), pa.string_view())),
        *((kind, lambda: random.randbytes(9)) for kind in (pa.binary(), pa.large_binary(), pa.binary(9))),
        *((kind, lambda kind=kind: whole(kind.bit_width)) for kind in (pa.int8(), pa.int16(), pa.int32(), pa.int64())),
        *((kind, random.random) for kind in (pa.float32(), pa.float64())),
        (pa.float64(), lambda: random.choice([float("nan"), float("inf"), -0.0, 1e308])),
        *((kind, lambda: whole(64)) for kind in (*times, pa.duration("s"), pa.duration("ns"), pa.date64())),
        *((kind, lambda: abs(whole(31))) for kind in (pa.date32(), pa.time32("ms"))),
        (pa.time64("ns"), lambda: abs(whole(60))),
        (pa.decimal128(38, 3), lambda: decimal.Decimal(random.randint(0, 10**30)).scaleb(-3)),
        (pa.bool_(), lambda: random.random() < 0.5),
        (pa.null(), lambda: None),
    ]


def value(random: random.Random, depth: int = 0) -> tuple[pa.DataType, Draw]:
    """Return a random type, nested or not, and a function that draws a value of it."""
    if depth > 2 or random.random() < 0.6:
        return random.choice(simple_values(random))
    kind, draw = value(random, depth + 1)
    if random.random() < 0.5:
        length = random.randint(1, 3)
        wrap = random.choice([pa.list_, pa.large_list, lambda kind: pa.list_(kind, length)])
        return wrap(kind), lambda: [draw() for _ in range(length)]
    other, draw_other = value(random, depth + 1)
    names = [random.choice(["bytes", "path", "a"]) for _ in range(2)]
    return pa.struct([(names[0], kind), (names[1], other)]), lambda: (draw(), draw_other())


def array(kind: pa.DataType, values: list[Any]) -> pa.Array:
    """Return an array of raw values, also for types whose values Python cannot represent."""
    empty = pa.array([item is None for item in values], pa.bool_())
    if pa.types.is_struct(kind):
        parts = [array(kind.field(n).type, [item[n] if item else None for item in values]) for n in range(2)]
        return pa.StructArray.from_arrays(parts, fields=list(kind), mask=empty)
    if pa.types.is_temporal(kind):
        return pa.array(values, pa.int64() if kind.bit_width == 64 else pa.int32()).view(kind)
    if pa.types.is_nested(kind) and not pa.types.is_fixed_size_list(kind):
        offsets = np.cumsum([0, *(len(items or []) for items in values)])
        flat = array(kind.value_type, [item for items in values for item in items or []])
        make = pa.ListArray if pa.types.is_list(kind) else pa.LargeListArray
        return make.from_arrays(pa.array(offsets, pa.int32() if make is pa.ListArray else pa.int64()), flat)
    if pa.types.is_fixed_size_list(kind):
        flat = array(kind.value_type, [item for items in values for item in items or [None] * kind.list_size])
        return pa.FixedSizeListArray.from_arrays(flat, kind.list_size)
    return pa.array(values, kind)
