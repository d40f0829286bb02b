"""The database of joins: bounded memory, a temporary folder that is removed, no extensions from the network."""

from __future__ import annotations

import resource
import tempfile
from pathlib import Path

import duckdb
import pytest

from jointdit.errors import PermanentError
from pipelines.store.joins import joins

MEGABYTE = 1 << 20


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_what_exceeds_the_memory_is_spilled_to_a_folder_that_is_removed(folder: Path) -> None:
    with joins(memory=48 * MEGABYTE, threads=1) as connection:
        connection.execute("create temp table numbers as select hash(range) as number from range(6_000_000)")
        sql = "select count(*) from (select number from numbers group by number)"
        assert connection.execute(sql).fetchall() == [(6_000_000,)]
        spilled = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
        assert sum(spilled) > 6_000_000
    assert list(folder.iterdir()) == []


def test_the_folder_is_removed_after_an_error(folder: Path) -> None:
    with pytest.raises(duckdb.CatalogException, match="missing"), joins() as connection:
        connection.execute("from missing")
    assert list(folder.iterdir()) == []


def test_a_lack_of_memory_is_one_sentence() -> None:
    sentence = r"^joining the dataset needs more than .* larger disk\.$"
    with pytest.raises(PermanentError, match=sentence), joins(memory=16 * MEGABYTE, threads=1) as connection:
        connection.execute("select list(range) from range(10_000_000)").fetchall()


def test_a_lack_of_room_is_the_same_sentence(folder: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 * MEGABYTE, limits[1]))
    try:
        with pytest.raises(PermanentError, match=f"more room in {folder}.* larger disk"), joins() as connection:
            connection.execute("create table numbers as select hash(range) as number from range(2_000_000)")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_missing_file_is_not_a_lack_of_room(folder: Path) -> None:
    with pytest.raises(duckdb.IOException, match=r"missing\.parquet"), joins() as connection:
        connection.execute(f"from read_parquet('{folder}/missing.parquet')")


def test_extensions_are_not_fetched() -> None:
    with joins() as connection:
        linked = "from duckdb_extensions() where loaded and install_mode <> 'STATICALLY_LINKED'"
        assert connection.execute(linked).fetchall() == []
        with pytest.raises(duckdb.Error, match="httpfs"):
            connection.execute("from read_parquet('s3://bucket/a.parquet')")


def test_a_name_in_sql_is_no_variable() -> None:
    numbers = duckdb.sql("select 1").to_arrow_table()
    assert numbers.num_rows == 1
    with joins() as connection, pytest.raises(duckdb.CatalogException, match="numbers"):
        connection.execute("from numbers")
