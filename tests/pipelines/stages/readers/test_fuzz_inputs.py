"""Files at random: each is refused in one sentence, or gives each row once, right or bad; nothing hangs.

A failure names its kind and seed; `tests.fuzz_files.make(kind, seed)` is the file.
"""

from __future__ import annotations

import io
import os
import time
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from jointdit.errors import InputError
from pipelines.plan.duplicate_ids import find_duplicate_ids
from pipelines.records import BadRow, Row
from pipelines.spec.job import InputSpec
from pipelines.stages.readers import check_columns, count_rows, list_files, read_rows
from tests.fuzz_files import KINDS, Case, make

SECONDS = 20  # a file takes milliseconds; what hangs takes for ever
NAMES = [kind.__name__ for kind in KINDS]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What addresses may find: an image, a pipe, a loop."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, format="PNG")
    (tmp_path / "ok.png").write_bytes(buffer.getvalue())
    os.mkfifo(tmp_path / "pipe")
    os.symlink("loop", tmp_path / "loop")
    return tmp_path


def read(case: Case, folder: Path) -> list[Row | BadRow] | InputError:
    """The rows of a case, read whole and in parts, or why it is refused. Any other exception is a fault."""
    (folder / case.name).write_bytes(case.data)
    spec_input = InputSpec(uri=str(folder / case.name), **case.fields)
    try:
        (file,) = list_files(spec_input, case.task)
        check_columns([file], spec_input, case.task)
        count = count_rows(file, spec_input)
        duplicates = find_duplicate_ids([file], spec_input)
    except InputError as error:
        return error
    rows = list(read_rows(file, [range(count)], spec_input, case.task))
    cuts = pairwise([0, count // 3, count // 2, count])
    parts = [row for a, b in cuts for row in read_rows(file, [range(a, b)], spec_input, case.task)]
    assert [(type(a), a.id, a.position) for a in rows] == [(type(b), b.id, b.position) for b in parts]
    thirds = list(read_rows(file, [range(n, n + 1) for n in range(0, count, 3)], spec_input, case.task))
    assert [(type(a), a.id, a.position) for a in rows[::3]] == [(type(b), b.id, b.position) for b in thirds]
    assert [row.position for row in rows] == list(range(count))
    assert duplicates or len({row.id for row in rows}) == count
    return rows


def check_sentence(text: str) -> None:
    assert text.endswith("."), text
    assert "\n" not in text, text
    assert "\0" not in text, text
    assert len(text) < 1500, text


def check(case: Case, folder: Path) -> None:
    found = read(case, folder)
    if isinstance(found, InputError):
        check_sentence(str(found))
        assert case.may_refuse, found
        return
    for row in found:
        if isinstance(row, BadRow):
            check_sentence(row.error)
        else:
            assert row.prompt is None or (row.prompt.strip() and "\0" not in row.prompt)
            row.id.encode("utf-8")
    if case.rows is not None:
        is_plain = ".jsonl" not in case.name and ".csv" not in case.name  # marks and blanks around text are no part
        prompts = [plain(row.prompt, is_plain) if isinstance(row, Row) else None for row in found]
        expected = [plain(text, is_plain) for text in case.rows]
        if case.may_refuse:  # where lines or letters are others, rows may be bad, but not wrong
            assert {None, *prompts} <= {None, *expected}
        else:
            assert prompts == expected
    if case.name == "a.jsonl" and case.task == "depth":
        assert all(isinstance(row, Row) for row in found[1::2])  # the good image after each address


def plain(text: str | None, is_plain: bool) -> str | None:
    return text.lstrip("\ufeff").strip() if text and is_plain else text


def check_many(kind: str, seeds: range, folder: Path) -> None:
    for seed in seeds:
        started = time.monotonic()
        case = make(kind, seed)
        try:
            check(case, folder)
        except Exception as error:
            raise AssertionError(f"tests.fuzz_files.make({kind!r}, {seed}) of {case.name}: {error!r}") from error
        assert time.monotonic() - started < SECONDS, f"make({kind!r}, {seed}) took too long"
        (folder / case.name).unlink()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", NAMES)
def test_some_files_at_random(kind: str, folder: Path) -> None:
    check_many(kind, range(20), folder)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", NAMES)
def test_hundreds_of_files_at_random(kind: str, folder: Path) -> None:
    check_many(kind, range(20, 4000 if kind == "damaged" else 1500), folder)
