"""The benchmarks of `jointdit evaluate`, in one table with published figures."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import Progress

from jobs.report import console
from jointdit.errors import InputError
from jointdit.evaluation.benchmarks import BENCHMARKS, Benchmark, BenchmarkResult, evaluate_benchmark, read_samples
from jointdit.evaluation.estimators import DepthEstimator, JointDiTEstimator
from jointdit.evaluation.published import LEAST_SQUARES, LEAST_SQUARES_TITLES, abs_rel, delta1, least_squares_rows
from jointdit.evaluation.tables import Column, ResultTable

if TYPE_CHECKING:
    from jobs.evaluation.context import Sizes
    from jointdit import JointDiTPipeline


@dataclass(frozen=True)
class BenchmarkChoice:
    """A benchmark, the folder or tar of its data, and its list of images (None: Marigold's file name in the root)."""

    benchmark: Benchmark
    root: Path
    list_file: Path | None = None


def parse_choices(roots: Sequence[str], lists: Sequence[str]) -> list[BenchmarkChoice]:
    """Parse `--benchmark NAME=PATH` and `--list NAME=FILE`. Raises InputError for an unknown name or an unused list."""
    files = dict(_named("--list", text) for text in lists)
    chosen = [_named("--benchmark", text) for text in roots]
    stray = sorted(set(files) - {name for name, _ in chosen})
    if stray:
        raise InputError(f"--list {stray[0]}={files[stray[0]]}: give --benchmark {stray[0]}=PATH too.")
    return [BenchmarkChoice(BENCHMARKS[name], path, files.get(name)) for name, path in chosen]


def check_benchmarks(choices: Sequence[BenchmarkChoice]) -> None:
    """Open every data set and its list. Raises InputError for the first that is missing or does not fit."""
    for choice in choices:
        _, samples = read_samples(choice.benchmark, choice.root, choice.list_file, limit=1)
        next(samples)


def benchmark_table(
    choices: Sequence[BenchmarkChoice],
    pipe: JointDiTPipeline,
    name: str,
    sizes: Sizes,
    baselines: Sequence[DepthEstimator],
    limit: int | None,
    long_side: int | None,
    output: Path,
) -> ResultTable:
    """Score the model and every baseline on every benchmark; write each image's metrics to a CSV in `output`."""
    ours = JointDiTEstimator(pipe, name, sizes.depth_steps, ensemble=sizes.ensemble, long_side=long_side)
    titles = dict.fromkeys([*LEAST_SQUARES_TITLES, *(choice.benchmark.title for choice in choices)])
    columns = [Column(column(title), ".1f") for title in titles for column in (abs_rel, delta1)]
    columns.append(Column("s/image", ".2f"))
    table = ResultTable("Depth on benchmarks", LEAST_SQUARES, columns)
    for estimator in (ours, *baselines):
        values: dict[str, float | None] = {}
        seconds = []
        partly = ""
        for choice in choices:
            result = _evaluate(choice, estimator, limit)
            _write_images(output / f"{choice.benchmark.name}-{_file_name(estimator.name)}.csv", result)
            title = choice.benchmark.title
            values |= {abs_rel(title): 100 * result.metrics["abs_rel"], delta1(title): 100 * result.metrics["delta1"]}
            seconds.append(result.seconds)
            partly = partly or ("" if result.is_whole else f", first {result.images} images")
            _note_size(table, choice.benchmark, result)
        values["s/image"] = sum(seconds) / len(seconds)
        source = f"this run, aligned in {estimator.space}"
        if estimator is ours:
            working = "the protocol's size" if long_side is None else f"{long_side} pixels"
            source += f", {sizes.depth_steps} steps, ensemble {sizes.ensemble}, {working}"
        table.measured(f"{Path(estimator.name).name}{partly}", values, source)
    for row in least_squares_rows():
        table.add(row)
    return table


def _evaluate(choice: BenchmarkChoice, estimator: DepthEstimator, limit: int | None) -> BenchmarkResult:
    label = f"{choice.benchmark.title}, {Path(estimator.name).name}"
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(label)
        return evaluate_benchmark(
            choice.benchmark,
            choice.root,
            estimator,
            choice.list_file,
            limit,
            on_image=lambda done, total: progress.update(task, completed=done, total=total),
        )


def _write_images(path: Path, result: BenchmarkResult) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", *result.metrics])
        writer.writerows([name, *scores.values()] for name, scores in result.by_image.items())


def _note_size(table: ResultTable, benchmark: Benchmark, result: BenchmarkResult) -> None:
    if benchmark.images is not None and result.images != benchmark.images:
        note = (
            f"{benchmark.title}: {result.images} images were compared, published figures are over {benchmark.images}."
        )
        if note not in table.notes:
            table.notes.append(note)


def _named(option: str, text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not equals or not path or name not in BENCHMARKS:
        raise InputError(f"{option} {text}: give NAME=PATH with a name of {', '.join(BENCHMARKS)}.")
    return name, Path(path).expanduser()


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in Path(name).name)
