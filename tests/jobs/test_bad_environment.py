"""Stores without access, missing packages and wrong usage: one sentence and the right exit code."""

from __future__ import annotations

import importlib
import os
import shlex
import sys
from pathlib import Path

import fsspec
import pytest
import yaml

from jobs.cli import main
from pipelines.store.storage import Storage
from tests.bad_inputs import JOINT, PLAN, RUN
from tests.jobs.test_bad_input import assert_refused


def test_no_access(s3, workspace, monkeypatch, capsys):
    bucket = s3.make_bucket()
    monkeypatch.chdir(workspace)
    Path("spec.yaml").write_text(yaml.safe_dump({**JOINT, "output": {"uri": f"{bucket}/out"}}))
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", s3.reader_key)
        patch.setenv("AWS_SECRET_ACCESS_KEY", s3.reader_secret)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        assert_refused(["run", "spec.yaml"], (bucket, "no access"), capsys)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    assert Storage(bucket).list("") == [], "nothing is written"


def test_a_missing_package(workspace, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    for name in ("gs", "gcs"):
        monkeypatch.delitem(importlib.import_module("fsspec.registry")._registry, name, raising=False)
    monkeypatch.chdir(workspace)
    Path("spec.yaml").write_text(yaml.safe_dump({**JOINT, "output": {"uri": "gs://bucket/out"}}))
    assert_refused(shlex.split(RUN), ("gs://", "install jointdit[gcs]"), capsys)


@pytest.mark.parametrize("command", [RUN, PLAN, "status s3://bucket/out"])
def test_endpoint_down(command, s3_environment, workspace, monkeypatch, capsys):
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    Path("spec.yaml").write_text(yaml.safe_dump({**JOINT, "output": {"uri": "s3://bucket/out"}}))
    assert_refused(command.split(), ("http://127.0.0.1:9 cannot be reached",), capsys)


def test_debug_shows_the_traceback_anywhere_on_the_line(workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    for arguments in (["--debug", "plan", "none.yaml"], ["plan", "none.yaml", "--debug"]):
        with pytest.raises(Exception, match=r"none\.yaml does not exist"):
            main(arguments)


WRONG_USAGE = [
    "scenes -n 0 -o x",
    "runn spec.yaml",
    "generate cube",
    "retry started",
    "diff started 0 1",
    "diff started one two",
    "generate cube -o x --steps many",
    "restyle in/maps/a.png cube -o x --kind inverse",
]


@pytest.mark.parametrize("command", WRONG_USAGE)
def test_wrong_usage_says_so_with_exit_code_2(command, workspace, monkeypatch, capsys):
    monkeypatch.chdir(workspace)
    assert main(shlex.split(command)) == 2
    assert "Usage: jointdit" in capsys.readouterr().err
    assert not os.path.exists("x")
