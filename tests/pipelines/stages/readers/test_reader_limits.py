"""Input limits: endless files, false sizes, special files and shared ids are refused."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jointdit.errors import InputError
from pipelines.plan.duplicate_ids import find_duplicate_ids
from pipelines.records import BadRow, Row
from pipelines.spec.job import Columns, DepthMaps, InputSpec
from pipelines.stages.readers import count_rows, list_files, opening, parquet_rows, read_rows, text_lines
from pipelines.stages.readers.opening import MAX_FILE_BYTES
from pipelines.stages.readers.rows import MAX_ID_CHARACTERS, MAX_PROMPT_CHARACTERS


def read(path: Path, task: str = "joint", **fields: Any) -> list[Row | BadRow]:
    spec_input = InputSpec(uri=str(path), **fields)
    files = list_files(spec_input, task)
    return [row for file in files for row in read_rows(file, [range(count_rows(file, spec_input))], spec_input, task)]


def errors(rows: list[Row | BadRow]) -> list[str]:
    return [row.error if isinstance(row, BadRow) else "" for row in rows]


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, format="PNG")
    return buffer.getvalue()


# --- sizes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.txt.gz", "a.jsonl.gz", "a.csv.gz"])
def test_an_endless_line_is_bad_alone(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_lines, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr("pipelines.stages.readers.csv_records.MAX_LINE_BYTES", 1000)
    kind = name.split(".")[1]
    wrap = {"txt": "{}", "csv": "{}", "jsonl": '{{"prompt": "{}"}}'}[kind]
    lines = ["prompt"] if kind == "csv" else []
    lines += [wrap.format(text) for text in ("one", "x" * 3_000_000, "two")]
    data = "".join(f"{line}\n" for line in lines).encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    first, long, last = read(tmp_path / name)
    assert (isinstance(first, Row), isinstance(last, Row)) == (True, True)
    assert (first.prompt, last.prompt) == ("one", "two")
    assert "more than the limit of 0 MiB" in errors([long])[0]


def test_a_line_at_the_limit_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_lines, "MAX_LINE_BYTES", 1000)
    for ending in (b"", b"\n"):
        (tmp_path / "a.txt").write_bytes(b"x" * (1000 - len(ending)) + ending)
        (row,) = read(tmp_path / "a.txt")
        assert isinstance(row, Row)


def test_long_ids_and_prompts_are_bad_alone(tmp_path: Path) -> None:
    rows = [
        {"id": "i" * MAX_ID_CHARACTERS, "prompt": "p" * MAX_PROMPT_CHARACTERS},
        {"id": "i" * (MAX_ID_CHARACTERS + 1), "prompt": "p"},
        {"id": "fine", "prompt": "p" * (MAX_PROMPT_CHARACTERS + 1)},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read(tmp_path / "a.jsonl")
    assert errors(found) == [
        "",
        "id has 1001 characters, more than the limit of 1000: shorten it.",
        "prompt has 100001 characters, more than the limit of 100000: shorten it.",
    ]
    assert [row.id for row in found[1:]] == ["a.jsonl:1", "fine"]


def test_a_file_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)  # takes no room on the disk
    assert errors(read(tmp_path / "a.png", "depth")) == [
        f"{tmp_path}/a.png has more than 1 GiB, the limit of one image or map."
    ]


def test_a_cell_of_gigabytes_is_bad_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "MAX_FILE_BYTES", 10_000)
    for kind, image in (("bytes", bytes(10_001)), ("struct", {"bytes": bytes(10_001), "path": None})):
        small = png() if kind == "bytes" else {"bytes": png(), "path": None}
        pq.write_table(pa.table({"image": [small, image, small]}), tmp_path / "a.parquet")
        first, large, last = errors(read(tmp_path / "a.parquet", "depth"))
        assert "column image has more than" in large
        assert first == last == ""


def test_a_list_of_run_lengths_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal numbers take next to nothing in Parquet, and 30 bytes each as Python objects."""
    monkeypatch.setattr(parquet_rows, "MAX_PIXELS", 1000)
    maps = [[[1.0, 2.0]], [[1.0] * 100] * 100, [[3.0, 2.0]]]
    pq.write_table(pa.table({"prompt": ["p"] * 3, "depth": maps}), tmp_path / "a.parquet")
    found = read(tmp_path / "a.parquet", "depth-to-image", depth=DepthMaps(kind="metric"))
    assert errors(found) == ["", "column depth holds 10000 numbers, more than the limit of 0 million.", ""]


# --- archives -------------------------------------------------------------------------------------------------------


def write_tar(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> None:
    with path.open("wb") as file:
        for member, data in members:
            file.write(member.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512))
        file.write(bytes(1024))


def member(name: str, size: int, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, link
    return info


@pytest.mark.parametrize("claimed", [10**7, 8 * 2**30, 2**62, 2**70])
def test_a_member_that_claims_more_than_there_is(claimed: int, tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", (member("a.png", len(png())), png()), (member("b.png", claimed), png()))
    good, bad = read(tmp_path / "a.tar", "depth")
    assert isinstance(good, Row)
    assert "archive ends inside a member" in errors([bad])[0] or "the limit of one image" in errors([bad])[0]


def test_a_negative_size_does_not_go_round_in_circles(tmp_path: Path) -> None:
    for kind in (tarfile.REGTYPE, tarfile.XHDTYPE):
        write_tar(tmp_path / "a.tar", (member("a.png", len(png())), png()), (member("b.png", -512, kind), b""))
        with pytest.raises(InputError, match=r"of a negative size|claims -512"):
            read(tmp_path / "a.tar", "depth")


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_header_that_claims_gigabytes_is_damage(kind: bytes, tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", (member("a.png", len(png())), png()), (member("long", 5 * 2**30, kind), b"x"))
    with pytest.raises(InputError, match="a member header claims 5368709"):
        read(tmp_path / "a.tar", "depth")


def test_names_in_an_archive_are_keys_and_links_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png())
    names = ["../../up.png", "/etc/absolute.png", "a/../b.png", "c:\\d.png"]
    write_tar(
        tmp_path / "a.tar",
        *((member(name, len(png())), png()) for name in names),
        (member("link.png", 0, tarfile.SYMTYPE, "secret.png"), b""),
        (member("hard.png", 0, tarfile.LNKTYPE, str(tmp_path / "secret.png")), b""),
        (member("device.png", 0, tarfile.CHRTYPE), b""),
    )
    before = sorted(tmp_path.rglob("*"))
    rows = read(tmp_path / "a.tar", "depth", columns=Columns(id="__key__"))
    assert errors(rows) == [""] * 4
    assert [row.id for row in rows] == ["../../up", "/etc/absolute", "a/../b", "c:\\d"]
    assert sorted(tmp_path.rglob("*")) == before


# --- what is no file ------------------------------------------------------------------------------------------------


def test_pipes_and_devices_are_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    os.symlink("/dev/zero", tmp_path / "zero.png")
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "table.csv").write_text("image\npipe.png\n/dev/zero\nzero.png\n")
    assert all("does not exist, or is no file" in error for error in errors(read(tmp_path / "table.csv", "depth")))
    for name in ("pipe.png", "pipe.jsonl", "zero.png"):
        with pytest.raises(InputError, match="is no regular file"):
            read(tmp_path / name, "depth")
    with pytest.raises(InputError, match="has no file"):
        read(tmp_path / "*.png", "depth")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_image_this_user_may_not_read_is_bad_alone(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(png())
    (tmp_path / "a.png").chmod(0)
    assert ["may not be read" in error for error in errors(read(tmp_path, "depth"))] == [True, False]


def test_links_to_files_are_followed_and_links_to_folders_are_not(tmp_path: Path) -> None:
    for name in ("elsewhere/inside.png", "elsewhere.png", "input/own.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png())
    os.symlink(tmp_path / "elsewhere.png", tmp_path / "input" / "link.png")
    os.symlink(tmp_path / "elsewhere", tmp_path / "input" / "folder")
    os.symlink(tmp_path / "gone.png", tmp_path / "input" / "gone.png")
    assert [row.id for row in read(tmp_path / "input", "depth")] == ["link.png:0", "own.png:0"]


# --- ids ------------------------------------------------------------------------------------------------------------


def duplicates(*paths: Path) -> list[str]:
    spec_input = InputSpec(uri=[str(path) for path in paths])
    return find_duplicate_ids(list_files(spec_input, "joint"), spec_input)


def test_an_id_that_is_another_rows_default_id_is_a_duplicate(tmp_path: Path) -> None:
    """A row without a usable id stands under its file and number: nobody else may have that name."""
    table = tmp_path / "a.jsonl"
    table.write_text('{"id": "a.jsonl:1", "prompt": "p"}\n{"id": "", "prompt": "p"}\n')
    assert duplicates(table) == ["a.jsonl:1"]
    table.write_text('{"id": "a.jsonl:1", "prompt": "p"}\nnot json\n')
    assert duplicates(table) == ["a.jsonl:1"]
    (tmp_path / "b.txt").write_text("one\ntwo\n")
    table.write_text('{"id": "b.txt:1", "prompt": "p"}\n{"id": "b.txt", "prompt": "p"}\n')
    assert duplicates(table, tmp_path / "b.txt") == ["b.txt:1"]
    table.write_text('{"id": "b.txt:x", "prompt": "p"}\n{"id": "c.txt:1", "prompt": "p"}\n')
    assert duplicates(table, tmp_path / "b.txt") == []


def test_ids_that_only_look_alike_are_different(tmp_path: Path) -> None:
    """Ids are compared as they are written: a composed é is not an e with an accent, nor a Cyrillic а an a."""
    ids = ["caf\u00e9", "cafe\u0301", "a", "\u0430", "a\u200b", "A"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"id": each, "prompt": "p"}) + "\n" for each in ids))
    assert duplicates(tmp_path / "a.jsonl") == []
    assert [row.id for row in read(tmp_path / "a.jsonl")] == ids


def test_damaged_numbers_and_text_in_arrays_do_not_warn(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[np.nan, -np.inf], [1e300, -1.0]]))
    (row,) = read(tmp_path / "a.npy", "depth-to-image", depth=DepthMaps(kind="metric"), prompt="p")
    assert errors([row]) == ["depth map has no valid pixel: check input.depth scale and invalid."]
