from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console

from pipelines.engine.progress import Progress
from pipelines.run.report import markdown, report_of
from pipelines.stages.finish import Receipt


def receipt(kept: int, rejected: int = 0, quarantined: int = 0) -> Receipt:
    counts = {"kept": kept, "rejected": rejected, "quarantined": quarantined}
    return Receipt("shard", "token", True, counts, {"depth_range": rejected}, 100)


def test_the_line_says_what_is_done_how_fast_and_how_long_it_takes() -> None:
    progress = Progress(Console(file=io.StringIO()))
    progress.plan(20)
    assert progress.line().startswith("0 of 20 samples, 0 kept, 0 rejected, 0 quarantined, 0.00 samples/s, starting")
    progress._started -= 10
    progress.committed(receipt(6, 1, 1))
    progress.show(in_flight=2.0)
    line = progress.line()
    assert line.startswith("8 of 20 samples, 6 kept, 1 rejected, 1 quarantined, 1.0")
    assert line.endswith(" 10 s left")
    assert (progress.shards, progress.reasons["depth_range"]) == (1, 1)


def test_the_line_counts_retries_by_kind() -> None:
    progress = Progress(Console(file=io.StringIO()))
    progress.plan(20)
    assert "retries" not in progress.line()
    for kind in ("store", "crash", "store"):
        progress.retried(kind)
    assert progress.line().endswith(", retries: 1 crash, 2 store")


def test_a_type_that_is_not_the_specs_is_said_once_and_reported(make_job) -> None:
    screen = io.StringIO()
    with Progress(Console(file=screen, force_terminal=True, width=120)) as progress:
        for dtype in ("bfloat16", "float32", "float32"):
            progress.computed_in(dtype, "bfloat16")
    assert screen.getvalue().count("a worker computes in float32: its CPU has no units for model.dtype bfloat16.") == 1
    report = report_of(make_job(["a"]).context.spec, progress, 1, "")
    assert "| computed in | bfloat16, float32 |" in markdown(report)


def test_a_round_of_new_seeds_is_announced_once_and_in_the_line() -> None:
    screen = io.StringIO()
    with Progress(Console(file=screen, force_terminal=True, width=120)) as progress:
        progress.begin_round(0, 8)
        assert "round" not in progress.line()
        for _ in range(2):
            progress.begin_round(1, 3)
    assert progress.line().startswith("round 1: 0 of 0 samples")
    assert screen.getvalue().count("round 1: 3 samples with new seeds, in place of rejected ones.") == 1


def test_a_terminal_gets_a_live_line_and_notes_above_it() -> None:
    screen = io.StringIO()
    with Progress(Console(file=screen, force_terminal=True, width=120)) as progress:
        progress.plan(4)
        progress.committed(receipt(4))
        progress.show(0.0)
        progress.note("an input is gone [bold]not markup[/bold]")
    assert "4 of 4 samples, 4 kept" in screen.getvalue()
    assert "[bold]not markup[/bold]" in screen.getvalue()


def test_elsewhere_it_logs_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="pipelines"), Progress(Console(file=io.StringIO())) as progress:
        progress.plan(4)
        progress.show(0.0)
        assert caplog.messages == []
        progress._logged -= 60
        progress.show(1.0)
        progress.show(2.0)
        progress.note("an input is gone")
    assert len(caplog.messages) == 2
    assert caplog.messages[0].startswith("0 of 4 samples")
