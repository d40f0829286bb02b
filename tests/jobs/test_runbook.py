"""The commands of infra/README.md: each is parsed, rendered, or compared with the objects that it names."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from jobs.cli import app
from jobs.kuberay.manifests import Deployment

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "infra" / "README.md").read_text()
OBJECTS = [
    each
    for name in ("s3.yaml", "gcs.yaml", "nightly.yaml")
    for each in yaml.safe_load_all((ROOT / "infra" / "kuberay" / name).read_text())
]
NAMES = {(each["kind"].lower(), each["metadata"]["name"]) for each in OBJECTS}
MANIFESTS = "".join((ROOT / "infra" / "kuberay" / name).read_text() for name in ("s3.yaml", "gcs.yaml", "nightly.yaml"))


def commands() -> list[list[str]]:
    found = []
    for block in re.findall(r"^```bash\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if words:
                found.append(words)
    return found


def of(program: str) -> list[Any]:
    return [pytest.param(words[1:], id=" ".join(words[1:6])) for words in commands() if words[0] == program]


def test_the_page_uses_only_known_programs() -> None:
    assert {words[0] for words in commands()} == {"export", "make", "helm", "kubectl", "jointdit"}


@pytest.mark.parametrize("words", of("jointdit"))
def test_each_command_of_this_package_is_valid(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    command = get_command(app).commands[words[0]]  # type: ignore[attr-defined]
    command.make_context(words[0], words[1:])  # raises for an unknown argument
    if words[0] == "submit":
        done = CliRunner().invoke(app, [*words, "--dry-run"])
        assert done.exit_code == 0, done.output


@pytest.mark.parametrize("words", of("kubectl"))
def test_each_kubectl_command_names_objects_of_the_manifests(words: list[str]) -> None:
    namespace = Deployment("s3").namespace
    if words[:2] in (["create", "namespace"], ["label", "namespace"]):
        assert words[2] == namespace
        return
    assert words[:2] == ["-n", namespace]
    verb, *rest = words[2:]
    if words[2:5] == ["create", "secret", "generic"]:
        assert f"name: {words[5]}\n" in MANIFESTS or f"secretName: {words[5]}\n" in MANIFESTS
        keys = re.findall(r"--from-(?:literal|file)=([\w.]+)=", " ".join(words))
        assert keys
        assert [key for key in keys if f"key: {key}\n" not in MANIFESTS and f"/{key}\n" not in MANIFESTS] == []
    elif verb in ("get", "describe", "delete") and rest[0] != "pods":
        assert (rest[0], rest[1]) in NAMES
    elif "-l" in rest:
        assert verb in ("get", "logs")
        key, value = rest[rest.index("-l") + 1].split("=")
        assert f"{key}: {value}\n" in MANIFESTS
    else:
        service = re.fullmatch(r"service/(.+)-head-svc", rest[0])  # KubeRay's name for the head of a RayJob
        assert verb == "port-forward"
        assert service
        assert ("rayjob", service[1]) in NAMES


def test_each_secret_of_the_pods_is_created() -> None:
    needed = set(re.findall(r"secretKeyRef:\n\s+name: (\S+)", MANIFESTS))
    assert needed == {words[6] for words in commands() if words[3:6] == ["create", "secret", "generic"]}
