"""Job names, folders, files and texts in any script, from the spec to every form of the dataset."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from pathlib import Path
from urllib.parse import unquote

import pytest
import ray

from jobs.cli import main
from jointdit.errors import SpecError
from pipelines.engine.metrics import label_value
from pipelines.spec.job import load_spec
from pipelines.store.storage import Storage

# umlauts, Chinese, an emoji of several code points, right-to-left with its mark, a combining accent
LETTERS = "größe 数据 👩‍🎨 \u202eשלום e\u0301"
SECONDS = 20.0  # deadline for Ray to export the metrics


def exported_datasets() -> set[str]:
    """Return the values of the label `dataset` at Ray's metrics port."""
    (node,) = [node for node in ray.nodes() if node["Alive"]]
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(address, timeout=10) as answer:
        text = answer.read().decode()
    return set(re.findall(r'ray_jointdit_samples_total\{.*dataset="([^"]*)"', text))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param("local", f"{LETTERS}\t\n\x1b[31m", id="local"),
        pytest.param("s3", "", id="s3", marks=pytest.mark.slow),
    ],
)
def test_a_job_of_any_name_runs_and_can_be_read(
    kind, name, s3, run_stand_in, make_spec, tmp_path: Path, capsys
) -> None:
    root = tmp_path / f"out {name}" if kind == "local" else s3.make_bucket()
    (tmp_path / f"{LETTERS}.txt").write_text("".join(f"{LETTERS} {number}\n" for number in range(3)))
    uri = f"{root}/{LETTERS}"
    spec = make_spec(name=name, input={"uri": str(tmp_path / f"{LETTERS}.txt")}, output={"uri": uri, "points": "ply"})
    assert spec.name == (name or LETTERS)
    assert run_stand_in(spec).counts_now["kept"] == 3
    exports = ["export", uri, "--webdataset", f"{root}/tars {LETTERS}", "--hf", f"{root}/hf {LETTERS}"]
    gallery = ["gallery", uri, "-o", str(tmp_path / f"gallery {LETTERS}")]
    for words in (["status", uri], ["versions", uri], ["validate", uri], ["gc", uri, "--dry-run"], gallery, exports):
        assert main(words) == 0, capsys.readouterr().err
    croissant = json.loads(Storage(uri).read_bytes("croissant.json"))
    assert croissant["name"] == " ".join(spec.name.split())
    until = time.monotonic() + SECONDS
    while label_value(spec.name) not in exported_datasets() and time.monotonic() < until:
        time.sleep(0.1)
    assert label_value(spec.name) in exported_datasets()


def test_labels_are_ascii_and_distinct() -> None:
    names = [
        "plain name, of {ASCII}",
        "größe",
        "gr%C3%B6%C3%9Fe",
        "数据",
        "\u202ea",
        "é",
        "e\u0301",
        "a\nb",
        "a b",
        "\udcff",
    ]
    labels = [label_value(name) for name in names]
    assert labels[:3] == [names[0], "gr%C3%B6%C3%9Fe", "gr%25C3%25B6%25C3%259Fe"]
    assert len(set(labels)) == len(names)
    assert all(label.isascii() and label.isprintable() for label in labels)
    assert [unquote(label) for label in labels[:-1]] == names[:-1]


@pytest.mark.parametrize("override", ['name="\\udcff"', 'output={uri: "a\\ud800b"}', 'price={"\\udcff": 1}'])
def test_text_that_is_no_unicode_is_refused_in_one_sentence(override: str, make_spec) -> None:
    with pytest.raises(SpecError, match="contains a NUL or a surrogate: write it as text in UTF-8") as caught:
        load_spec(make_spec(["a"]).as_given(), [override])
    assert str(caught.value).isascii()
