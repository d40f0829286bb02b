"""infra/throughput.md: the arithmetic by hand, and that the command writes this document."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jobs.tools.bench.record import read_results
from jobs.tools.throughput import (
    TARGET,
    Assumptions,
    Measured,
    compute_day,
    document,
    put_requests,
    read_measured,
    row_flops,
    storage_price,
)
from jointdit.errors import SpecError

MEASURED = Measured(finish_rows=10.0, row_bytes=400e3, driver_seconds=0.005, source="a CPU, commit abc, PNG")
ASSUMED = Assumptions()


def test_operations_are_near_two_per_parameter_and_token() -> None:
    """Blocks process 1,536 tokens in each half of the batch; attention comes on top."""
    flops = row_flops(512, 20)
    assert flops["network"] / 20 == pytest.approx(2 * 2 * 1536 * 11.9e9, rel=0.3)
    assert row_flops(512, 4)["network"] * 5 == flops["network"]
    assert flops["text"] == pytest.approx(2 * 512 * 4.76e9, rel=0.1)  # parameters of T5-XXL's encoder
    assert 4e12 < flops["VAE"] < 8e12
    assert row_flops(1024, 20)["VAE"] == pytest.approx(4 * flops["VAE"], rel=0.1)


def test_a_day_by_hand() -> None:
    result = compute_day(512, 20, MEASURED, ASSUMED)
    seconds = sum(row_flops(512, 20).values()) / (989e12 * 0.40)
    assert result.rows == pytest.approx(1000 / seconds * 86_400)
    assert result.bytes == pytest.approx(result.rows * 400e3)
    assert result.shards == pytest.approx(result.rows / 256)
    assert result.puts == pytest.approx(result.shards * 2), "a table of 102 MB and a commit"
    larger = compute_day(512, 20, replace(MEASURED, row_bytes=420e3), ASSUMED)
    assert larger.puts == pytest.approx(result.shards * 6), "108 MB: begin, three parts, end; and a commit"
    loads = {resource.name: resource.load for resource in result.resources}
    assert loads["finish on CPU cores"] == pytest.approx(1 / seconds / 10 / 8)
    assert loads["network to the store"] == pytest.approx(400e3 / seconds / 1.25e9)
    assert loads["the driver's CPU"] == pytest.approx(1000 / seconds / 256 * 0.005)
    large = compute_day(1024, 20, MEASURED, ASSUMED)
    assert large.bytes / large.rows == pytest.approx(1.6e6)
    assert large.resources[0].load / (4 * loads["finish on CPU cores"]) == pytest.approx(large.rows / result.rows)


def test_the_bottleneck_follows_the_numbers() -> None:
    assert compute_day(512, 20, MEASURED, ASSUMED).bottleneck.load < 1
    slow = compute_day(512, 20, replace(MEASURED, finish_rows=0.01), ASSUMED)
    assert slow.bottleneck.name == "finish on CPU cores"
    assert "The GPUs are not always the bottleneck" in document(replace(MEASURED, finish_rows=0.01), ASSUMED)
    many = compute_day(512, 4, MEASURED, replace(ASSUMED, gpus=10**7))
    assert many.bottleneck.name == "the driver's CPU"


def test_requests_and_prices() -> None:
    assert [put_requests(size) for size in (1, (100 << 20) - 1, 100 << 20, (150 << 20) + 1)] == [1, 1, 4, 6]
    assert storage_price(10e12, ASSUMED) == pytest.approx(10e3 * 0.023)
    assert storage_price(600e12, ASSUMED) == pytest.approx(50e3 * 0.023 + 450e3 * 0.022 + 100e3 * 0.021)


def test_a_missing_measurement_is_an_error() -> None:
    with pytest.raises(SpecError, match="no result of the bench finish"):
        read_measured({})


def test_the_command_writes_the_document() -> None:
    assert TARGET.read_text() == document(read_measured(read_results()), ASSUMED)
