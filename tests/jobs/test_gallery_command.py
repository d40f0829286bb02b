"""`jointdit gallery`: write the page again, to another folder or with more rows; and its errors."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from jobs.cli import main
from tests.local_job import job_in


def shown(page: Path) -> list[int]:
    found = re.search('id="settings">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found
    return json.loads(found[1])["shown"]


def test_it_writes_the_page_with_the_requested_rows(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    job = job_in(tmp_path, ["a cube", "a sphere", "a cone"])
    uri = job.context.storage.uri
    assert main(["gallery", uri]) == 1
    assert "holds no job" in capsys.readouterr().err
    job.complete()
    assert main(["gallery", uri, "--rows", "2"]) == 0
    assert f"gallery {uri}/gallery/index.html" in capsys.readouterr().out
    assert shown(Path(uri) / "gallery" / "index.html") == [2, 0, 0]
    assert main(["gallery", uri, "-o", str(tmp_path / "look")]) == 0
    assert shown(tmp_path / "look" / "index.html") == [3, 0, 0]


def test_a_browser_opens_no_bucket(capsys: pytest.CaptureFixture) -> None:
    assert main(["gallery", "s3://datasets/rooms", "--open"]) == 2
    assert "add -o DIR" in capsys.readouterr().err
