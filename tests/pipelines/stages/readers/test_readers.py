"""Readers yield the same rows in every format, each exactly once, and isolate bad rows."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from collections.abc import Callable
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
from pipelines.stages.readers import check_columns, count_rows, list_files, listing, read_rows

ROWS = 7
PROMPTS = [f"scene {number}, a “red” sphere; naïve" for number in range(ROWS)]


def spec(uri: Path | list[Path], **fields: Any) -> InputSpec:
    return InputSpec(uri=[str(u) for u in uri] if isinstance(uri, list) else str(uri), **fields)


def read_all(spec_input: InputSpec, task: str) -> list[Row | BadRow]:
    files = list_files(spec_input, task)
    check_columns(files, spec_input, task)
    return [row for file in files for row in read_rows(file, [range(count_rows(file, spec_input))], spec_input, task)]


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (9 + number, 12, 3), dtype=np.uint8)


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()


def depth_map(number: int) -> np.ndarray:
    """Millimetres, with a hole."""
    array = np.random.default_rng(number).integers(500, 9000, (6, 8 + number), dtype=np.uint16)
    array[2, 3] = 0
    return array


# --- the same rows from every format --------------------------------------------------------------------------------


def write_txt(folder: Path) -> Path:
    path = folder / "rows.txt"
    path.write_text("".join(f"{prompt}\n" for prompt in PROMPTS), encoding="utf-8")
    return path


def records(folder: Path, images_as: str) -> list[dict[str, Any]]:
    """Rows with every field; images beside the table ("path"), or inside it ("bytes", "struct")."""
    made = []
    (folder / "files").mkdir()
    for number, prompt in enumerate(PROMPTS):
        record: dict[str, Any] = {"id": f"row-{number}", "prompt": prompt}
        for name, array in (("image", picture(number)), ("depth", depth_map(number))):
            data = png(array)
            (folder / "files" / f"{name}{number}.png").write_bytes(data)
            path = f"files/{name}{number}.png"
            record[name] = {"path": path, "bytes": data, "struct": {"bytes": data, "path": None}}[images_as]
        made.append(record)
    return made


def write_jsonl(folder: Path) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records(folder, "path")))
    return path


def write_jsonl_gz(folder: Path) -> Path:
    path = folder / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(write_jsonl(folder).read_bytes()))
    return path


def write_csv(folder: Path) -> Path:
    path = folder / "rows.csv"
    made = records(folder, "path")
    lines = [",".join(made[0])]
    lines += [",".join('"' + str(value).replace('"', '""') + '"' for value in record.values()) for record in made]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    return path


def write_parquet(folder: Path, images_as: str = "bytes") -> Path:
    path = folder / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(records(folder, images_as)), path, row_group_size=3)
    return path


def write_parquet_structs(folder: Path) -> Path:
    return write_parquet(folder, "struct")


def write_parquet_paths(folder: Path) -> Path:
    return write_parquet(folder, "path")


def write_tar(folder: Path) -> Path:
    path = folder / "rows.tar"
    with tarfile.open(path, "w") as archive:
        for record in records(folder, "bytes"):
            about = json.dumps({"id": record["id"]}).encode()
            members = {
                "image.png": record["image"],
                "depth.png": record["depth"],
                "json": about,
                "txt": record["prompt"].encode(),
            }
            for extension, data in members.items():
                member = tarfile.TarInfo(f"part/{record['id']}.{extension}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return path


TABLES: list[Callable[[Path], Path]] = [
    write_jsonl,
    write_jsonl_gz,
    write_csv,
    write_parquet,
    write_parquet_structs,
    write_parquet_paths,
    write_tar,
]


@pytest.mark.parametrize("write", TABLES)
def test_every_table_gives_the_same_images_maps_and_prompts(write: Callable[[Path], Path], tmp_path: Path) -> None:
    path = write(tmp_path)
    for number, row in enumerate(read_all(spec(path), "joint")):
        assert isinstance(row, Row), row
        assert (row.id, row.position, row.prompt) == (f"row-{number}", number, PROMPTS[number])
        assert row.rgb is None
    for number, row in enumerate(read_all(spec(path), "depth")):
        assert isinstance(row, Row), row
        assert row.rgb is not None
        np.testing.assert_array_equal(row.rgb, picture(number))
        assert row.rgb_bytes == png(picture(number))
        assert row.prompt is None
    meaning = DepthMaps(kind="metric", scale=0.001, invalid=0)
    for number, row in enumerate(read_all(spec(path, depth=meaning), "depth-to-image")):
        assert isinstance(row, Row), row
        assert row.depth is not None
        assert row.depth_valid is not None
        np.testing.assert_allclose(row.depth, depth_map(number) * 0.001, rtol=1e-6)
        assert np.argwhere(~row.depth_valid).tolist() == [[2, 3]]
        assert row.prompt == PROMPTS[number]


@pytest.mark.parametrize("write", [*TABLES, write_txt])
def test_ranges_put_together_are_the_whole_file(write: Callable[[Path], Path], tmp_path: Path) -> None:
    spec_input = spec(write(tmp_path))
    (file,) = list_files(spec_input, "joint")
    assert count_rows(file, spec_input) == ROWS
    prompts = []
    for start, stop in ((0, 2), (2, 3), (3, 3), (3, 7)):
        rows = list(read_rows(file, [range(start, stop)], spec_input, "joint"))
        assert [row.position for row in rows] == list(range(start, stop))
        prompts += [row.prompt for row in rows if isinstance(row, Row)]
    assert prompts == PROMPTS
    rows = list(read_rows(file, [range(1), range(2, 4), range(6, 8)], spec_input, "joint"))
    assert [row.prompt for row in rows[:-1] if isinstance(row, Row)] == [PROMPTS[number] for number in (0, 2, 3, 6)]
    assert isinstance(rows[-1], BadRow)
    assert (rows[-1].position, rows[-1].error) == (7, "row is not in the file any more.")


def test_ranges_deep_in_a_long_file_start_from_the_index(tmp_path: Path) -> None:
    lines = tmp_path / "long.txt"
    lines.write_text("".join(f"prompt {number}\n" for number in range(5000)))
    table = tmp_path / "long.csv"
    table.write_text("prompt\n" + "".join(f'"prompt\n{number}"\n\n' for number in range(5000)))
    for path, separator in ((lines, " "), (table, "\n")):
        (file,) = list_files(spec(path), "joint")
        assert count_rows(file, spec(path)) == 5000
        rows = list(read_rows(file, [range(3000, 3003)], spec(path), "joint"))
        assert [row.prompt for row in rows if isinstance(row, Row)] == [
            f"prompt{separator}{n}" for n in range(3000, 3003)
        ]


def test_a_parquet_depth_column_may_hold_numbers(tmp_path: Path) -> None:
    maps = [[[1.0, 2.0], [4.0, float("nan")]]]
    pq.write_table(pa.table({"prompt": ["p"], "depth": maps}), tmp_path / "maps.parquet")
    (row,) = read_all(spec(tmp_path / "maps.parquet", depth=DepthMaps(kind="metric")), "depth-to-image")
    assert isinstance(row, Row)
    assert row.depth is not None
    assert row.depth.tolist() == [[1.0, 2.0], [4.0, 0.0]]


def test_a_folder_of_images_is_one_row_a_file(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.png").write_bytes(png(picture(1)))
    (tmp_path / "sub" / "a.PNG").write_bytes(png(picture(2)))
    (tmp_path / ".hidden.png").write_bytes(b"")
    (tmp_path / "notes.md").write_text("not an image")
    os.symlink(tmp_path / "b.png", tmp_path / "link.png")
    rows = read_all(spec(tmp_path), "depth")
    assert [row.id for row in rows] == ["b.png:0", "link.png:0", "sub/a.PNG:0"]
    assert all(isinstance(row, Row) for row in rows)


def test_a_folder_of_maps_takes_prompts_from_beside_them_or_from_the_spec(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", depth_map(0).astype(np.float32) / 1000)
    (tmp_path / "b.png").write_bytes(png(depth_map(1)))
    (tmp_path / "b.txt").write_text("a green cube\n")
    meaning = DepthMaps(kind="metric")
    first, second = read_all(spec(tmp_path, depth=meaning), "depth-to-image")
    assert isinstance(first, BadRow)
    assert "prompt is missing" in first.error
    assert isinstance(second, Row)
    assert second.prompt == "a green cube"
    first, second = read_all(spec(tmp_path, depth=meaning, prompt="a room"), "depth-to-image")
    assert isinstance(first, Row)
    assert isinstance(second, Row)
    assert (first.prompt, second.prompt) == ("a room", "a green cube")


# --- ids and addresses ----------------------------------------------------------------------------------------------


def test_ids_are_relative_to_the_prefix_before_the_glob(tmp_path: Path) -> None:
    for name in ("x/1/a.txt", "x/2/a.txt"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("one\ntwo\n")
    rows = read_all(spec(tmp_path / "x/*/a.txt"), "joint")
    assert [row.id for row in rows] == ["1/a.txt:0", "1/a.txt:1", "2/a.txt:0", "2/a.txt:1"]
    assert [row.id for row in read_all(spec(tmp_path / "x/1/a.txt"), "joint")] == ["a.txt:0", "a.txt:1"]
    both = spec([tmp_path / "x/2/a.txt", tmp_path / "x/1/a.txt"])
    files = list_files(both, "joint")
    assert [file.uri for file in files] == sorted(file.uri for file in files)
    assert find_duplicate_ids(files, both) == ["a.txt:0"]


def test_a_file_named_twice_is_listed_once(tmp_path: Path) -> None:
    path = write_txt(tmp_path)
    assert len(list_files(spec([path, tmp_path, tmp_path / "*.txt"]), "joint")) == 1


@pytest.mark.parametrize("what", ["", "*.txt"])
def test_a_file_deleted_while_its_folder_is_listed_is_gone(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.txt").write_text("a prompt\n")
    real = listing.suffix_of

    def somebody_deletes_b(uri: str) -> str:
        (tmp_path / "b.txt").unlink(missing_ok=True)
        return real(uri)

    monkeypatch.setattr(listing, "suffix_of", somebody_deletes_b)
    assert [file.relative_path for file in list_files(spec(tmp_path / what), "joint")] == ["a.txt", "c.txt"]


def test_a_file_deleted_while_it_is_looked_at_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_txt(tmp_path)
    real = listing.suffix_of

    def somebody_deletes_it(uri: str) -> str:
        path.unlink(missing_ok=True)
        return real(uri)

    monkeypatch.setattr(listing, "suffix_of", somebody_deletes_it)
    with pytest.raises(InputError, match=r"rows.txt does not exist any more: correct the address\.$"):
        list_files(spec(path), "joint")


def test_duplicate_ids_are_found_across_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        pq.write_table(pa.table({"key": ["1", "2", f"{name}3"], "prompt": ["p"] * 3}), tmp_path / f"{name}.parquet")
    spec_input = spec(tmp_path, columns=Columns(id="key"))
    files = list_files(spec_input, "joint")
    assert find_duplicate_ids(files, spec_input) == ["1", "2"]
    assert find_duplicate_ids(files, spec_input, limit=1) == ["1"]
    assert find_duplicate_ids(files[:1], spec_input) == []


def test_the_key_of_an_archive_can_be_the_id(tmp_path: Path) -> None:
    rows = read_all(spec(write_tar(tmp_path), columns=Columns(id="__key__")), "joint")
    assert [row.id for row in rows] == [f"part/row-{number}" for number in range(ROWS)]


def test_whole_numbers_are_ids_and_unreadable_ids_fall_back(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    values = [7, "", True, 1.5, None, "\ud800", "fine"]
    path.write_text("".join(json.dumps({"id": value, "prompt": "p"}) + "\n" for value in values))
    rows = read_all(spec(path), "joint")
    assert [row.id for row in rows] == ["7", *(f"rows.jsonl:{n}" for n in range(1, 6)), "fine"]
    assert [isinstance(row, BadRow) for row in rows] == [False, *[True] * 5, False]
