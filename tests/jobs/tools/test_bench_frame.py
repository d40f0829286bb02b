"""The frame of the benches: turns, ratios, unequal work, results and the command."""

import json
import os
from pathlib import Path

import pytest

from jobs.cli import main
from jobs.tools.bench import BENCHES
from jobs.tools.bench.frame import Line, Reach, Spread, Turn, alternate, check_same_work, repeat, slope
from jobs.tools.bench.record import Result, cells, markdown, number, read_results, write_results
from jobs.tools.bench.running import json_alone
from jointdit.errors import PermanentError


def side(name, calls, values, **work):
    values = iter(values)

    def run():
        calls.append(name)
        return Turn(next(values), work or {"rows": 3})

    return run


def test_the_sides_alternate_and_each_pair_gives_a_ratio():
    calls = []
    pairs = alternate(side("A", calls, [9, 2, 4, 9, 8]), side("B", calls, [9, 1, 1, 3, 2]), pairs=4)
    assert "".join(calls) == "AB" + "ABBAABBA"
    assert pairs.ratio == Spread(3.5, 2.75, 4.0, 4)  # 2, 4, 3, 4
    line = pairs.line("a job", "rows/s", Reach("at least", 3.4))
    assert (line.ours.median, line.theirs.median, line.reached, line.work) == (6, 1.5, True, {"rows": 3})


def test_a_bench_at_its_time_limit_runs_two_pairs():
    calls = []
    pairs = alternate(side("A", calls, [1] * 9), side("B", calls, [1] * 9), pairs=9, seconds=0, warm_up=False)
    assert "".join(calls) == "ABBA"
    assert pairs.ratio.count == 2
    assert len(repeat(side("A", calls, [1] * 9), times=9, seconds=0)) == 1


@pytest.mark.parametrize(
    ("ours", "theirs", "sentence"),
    [
        ({"rows": 3}, {"rows": 4}, r"rows \(3 and 4\)"),
        ({"rows": 3, "output": "ab"}, {"rows": 3, "output": "cd"}, "output"),
        ({"rows": 3}, {}, r"rows \(3 and None\)"),
        ({}, {}, "do not report their work"),
    ],
    ids=["rows", "output", "not counted", "nothing counted"],
)
def test_unequal_work_is_an_error(ours, theirs, sentence):
    with pytest.raises(PermanentError, match=sentence):
        check_same_work(ours, theirs)


def test_the_work_of_every_turn_is_compared():
    works = iter([{"rows": 3}, {"rows": 3}, {"rows": 2}])

    def changing():
        return Turn(1.0, next(works))

    with pytest.raises(PermanentError, match="rows"):
        alternate(changing, lambda: Turn(1.0, {"rows": 3}), pairs=5)


def test_targets_and_numbers():
    assert Reach("at most", 0.5).holds(0.5)
    assert not Reach("at most", 0.5).holds(0.51)
    assert not Reach("at least", 0.5).holds(float("nan"))
    assert [number(value) for value in (0.98123, 12.345, 1234.5, 1234567.0)] == ["0.981", "12.3", "1,230", "1,230,000"]
    assert slope({1.0: 3.0, 2.0: 5.0, 4.0: 9.0}) == (2.0, 1.0)


def result_of(name, **fields):
    one = Spread.of([0.9, 1.0, 1.1])
    lines = (
        Line("a | b", "s", one, one, Spread.of([2.0]), Reach("at least", 0.97), {"rows": 1200}, ("it waits",)),
        Line("shown only", "MB", one, one),
    )
    machine = {"cpu": "a CPU", "cores": 2, "memory_gb": 8.0, "system": "Linux", "python": "3", "packages": {"ray": "2"}}
    return Result(name, lines, 3.0, "2026-01-01T00:00:00+00:00", "abc", machine, 0.1, **fields)


def test_the_last_result_of_each_bench_is_kept_and_the_table_is_written(tmp_path):
    first = result_of("startup")
    write_results([first], "the command", tmp_path)
    assert read_results(tmp_path) == {"startup": Result.from_json(json.loads(json.dumps(first.to_json())))}
    path = write_results([result_of("startup", error="no room")], "the command", tmp_path)
    text = path.read_text()
    assert "| startup | failed: no room |" in text
    assert "| startup | a \\| b | 1 (0.95 to 1.05) s | 2 s | 1 (0.95 to 1.05) | ≥ 0.97 | yes |" in text
    assert "- a | b: rows 1,200; 3 repetitions\n  - it waits" in text
    assert "a CPU, 2 cores" in text
    assert cells(first.lines[1])[-3:] == ("1 (0.95 to 1.05)", "", "")
    assert markdown([first], "x") == markdown([first], "x")


def test_the_list_names_every_bench_and_each_has_a_file(capsys):
    assert main(["bench", "--list"]) == 0
    printed = capsys.readouterr().out
    for name, bench in BENCHES.items():
        assert name in printed
        assert (Path(__file__).parents[3] / "jobs/tools/bench" / f"{bench.module}.py").is_file()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nothing"], "no bench 'nothing'"),
        ([], "no bench is named"),
        (["startup", "--quick", "--write"], "mean nothing"),
    ],
    ids=["unknown", "none", "quick figures"],
)
def test_arguments_that_the_command_refuses(arguments, sentence, capsys):
    assert main(["bench", *arguments]) != 0
    assert sentence in " ".join(capsys.readouterr().err.split())


def test_other_output_does_not_mix_with_the_json(capfd):
    with json_alone() as output:
        print("from Python")
        os.system("echo from a child process")
        print("{}", file=output)
    print("afterwards")
    printed = capfd.readouterr()
    assert printed.out == "{}\nafterwards\n"
    assert "from a child process" in printed.err


def test_startup_runs_and_prints_json_only(capfd):
    assert main(["bench", "startup", "--quick", "--json"]) == 0
    result = json.loads(capfd.readouterr().out)
    assert [line["what"] for line in result["lines"]] == ["jointdit --help", "jointdit plan"]
    assert all(line["ours"]["median"] > line["theirs"]["median"] > 0 for line in result["lines"])
    assert result["machine"]["cores"] >= 1
    assert result["commit"]
