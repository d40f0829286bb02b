"""Tables hold one protocol each, and published figures come with theirs."""

import json
import math

import pytest

from jointdit.errors import InputError
from jointdit.evaluation import published
from jointdit.evaluation.tables import Column, ResultRow, ResultTable, markdown_report

HOW = "least squares on ten images"


@pytest.fixture
def table():
    return ResultTable("Depth", HOW, [Column("AbsRel %", ".1f"), Column("δ1 %", ".0f")])


def test_markdown_and_json_say_the_same_and_name_protocol_and_source(table):
    table.measured("ours", {"AbsRel %": 5.04, "δ1 %": math.nan})
    table.add(ResultRow("theirs", {"AbsRel %": 4.9, "δ1 %": 97.4}, "their paper", HOW))
    table.notes.append("ten images are few")
    text = markdown_report("Report", [table], "The end.")
    assert text.splitlines() == [
        "# Report",
        "",
        "### Depth",
        "",
        f"Protocol: {HOW}.",
        "",
        "|  | AbsRel % | δ1 % | source |",
        "| --- | ---: | ---: | --- |",
        "| ours | 5.0 |  | this run |",
        "| theirs | 4.9 | 97 | their paper |",
        "",
        "- ten images are few",
        "",
        "The end.",
    ]
    plain = json.loads(json.dumps(table.as_json(), allow_nan=False))
    assert plain["protocol"] == HOW
    assert plain["rows"][0] == {"method": "ours", "values": {"AbsRel %": 5.04, "δ1 %": None}, "source": "this run"}


def test_a_row_of_another_protocol_or_with_unknown_figures_is_refused(table):
    with pytest.raises(InputError, match="PPD was measured by another protocol"):
        table.add(ResultRow("PPD", {"AbsRel %": 3.8}, "their paper", published.ROBUST))
    with pytest.raises(InputError, match=r"without a column in table 'Depth': \['FID'\]"):
        table.measured("ours", {"FID": 3.8})
    assert table.rows == []


def test_published_tables_name_their_protocol_and_source_in_each_row():
    tables = [
        published.robust_table(),
        published.joint_models_table(),
        published.depth_to_image_table(),
        published.text_to_image_table(),
    ]
    protocols = {table.protocol for table in tables} | {row.protocol for row in published.least_squares_rows()}
    assert len(protocols) == 5
    methods = set()
    for table in tables:
        for row in table.rows:
            methods.add(row.method)
            assert row.source
            assert all(value is not None for value in row.values.values())
    methods |= {row.method for row in published.least_squares_rows()}
    wanted = {
        "JointDiT (FLUX)",
        "Marigold",
        "GeoWizard",
        "Depth-Anything-V2",
        "LDM3D",
        "JointNet",
        "UniCon",
        "ControlNet",
    }
    assert wanted <= methods


def test_least_squares_figures_have_the_columns_of_a_benchmark_table():
    rows = {row.method: row.values for row in published.least_squares_rows()}
    assert rows["JointDiT (FLUX)"][published.abs_rel("ETH3D")] == 5.6
    assert rows["Depth-Anything-V2"][published.abs_rel("KITTI (Eigen)")] == 7.5
