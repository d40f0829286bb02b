"""The arithmetic of infra/throughput.md, by hand, and that the document is what the command writes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jobs.tools.bench.record import read_results
from jobs.tools.throughput import (
    TARGET,
    Assumptions,
    Measured,
    day,
    document,
    measured,
    put_requests,
    row_flops,
    storage_price,
)
from jointdit.errors import SpecError

FOUND = Measured(finish_rows=10.0, row_bytes=400e3, driver_seconds=0.005, source="a CPU, commit abc, PNG")
GIVEN = Assumptions()


def test_operations_are_near_two_a_parameter_and_token() -> None:
    """FLUX's blocks see 1,536 tokens twice, once a half; attention comes on top."""
    flops = row_flops(512, 20)
    assert flops["network"] / 20 == pytest.approx(2 * 2 * 1536 * 11.9e9, rel=0.3)
    assert row_flops(512, 4)["network"] * 5 == flops["network"]
    assert flops["text"] == pytest.approx(2 * 512 * 4.76e9, rel=0.1)  # parameters of T5-XXL's encoder
    assert 4e12 < flops["VAE"] < 8e12
    assert row_flops(1024, 20)["VAE"] == pytest.approx(4 * flops["VAE"], rel=0.1)


def test_a_day_by_hand() -> None:
    found = day(512, 20, FOUND, GIVEN)
    seconds = sum(row_flops(512, 20).values()) / (989e12 * 0.40)
    assert found.rows == pytest.approx(1000 / seconds * 86_400)
    assert found.bytes == pytest.approx(found.rows * 400e3)
    assert found.shards == pytest.approx(found.rows / 256)
    assert found.puts == pytest.approx(found.shards * 2), "a table of 102 MB, and a commit"
    larger = day(512, 20, replace(FOUND, row_bytes=420e3), GIVEN)
    assert larger.puts == pytest.approx(found.shards * 6), "of 108 MB: begin, three parts, end; a commit"
    loads = {part.name: part.load for part in found.parts}
    assert loads["finishing on CPU cores"] == pytest.approx(1 / seconds / 10 / 8)
    assert loads["network to the store"] == pytest.approx(400e3 / seconds / 1.25e9)
    assert loads["the driver's CPU"] == pytest.approx(1000 / seconds / 256 * 0.005)
    large = day(1024, 20, FOUND, GIVEN)
    assert large.bytes / large.rows == pytest.approx(1.6e6)
    assert large.parts[0].load / (4 * loads["finishing on CPU cores"]) == pytest.approx(large.rows / found.rows)


def test_what_runs_full_first_follows_the_numbers() -> None:
    assert day(512, 20, FOUND, GIVEN).first_full.load < 1
    slow = day(512, 20, replace(FOUND, finish_rows=0.01), GIVEN)
    assert slow.first_full.name == "finishing on CPU cores"
    assert "Not everywhere do the GPUs run full first" in document(replace(FOUND, finish_rows=0.01), GIVEN)
    many = day(512, 4, FOUND, replace(GIVEN, gpus=10**7))
    assert many.first_full.name == "the driver's CPU"


def test_requests_and_prices() -> None:
    assert [put_requests(size) for size in (1, (100 << 20) - 1, 100 << 20, (150 << 20) + 1)] == [1, 1, 4, 6]
    assert storage_price(10e12, GIVEN) == pytest.approx(10e3 * 0.023)
    assert storage_price(600e12, GIVEN) == pytest.approx(50e3 * 0.023 + 450e3 * 0.022 + 100e3 * 0.021)


def test_without_a_measurement_nothing_is_computed() -> None:
    with pytest.raises(SpecError, match="no result of the bench finish"):
        measured({})


def test_the_document_is_what_the_command_writes() -> None:
    assert TARGET.read_text() == document(measured(read_results()), GIVEN)
