"""Check the Dockerfile without building the image."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from jobs.kuberay.pods import HOME, IMAGE, USER

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "infra" / "docker" / "Dockerfile"
KNOWN = {"ARG", "FROM", "ENV", "RUN", "WORKDIR", "COPY", "USER", "CMD"}
Instruction = tuple[str, str]


def instructions(text: str) -> list[Instruction]:
    """Return (keyword, rest) of each instruction, without comments and with continued lines joined."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(word.upper(), rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines())]


def stages(found: list[Instruction]) -> list[list[Instruction]]:
    """Return the instructions of each stage, its FROM first; those before the first FROM are a stage too."""
    parts: list[list[Instruction]] = [[]]
    for each in found:
        if each[0] == "FROM":
            parts.append([])
        parts[-1].append(each)
    return parts


@pytest.fixture(scope="module")
def dockerfile() -> list[list[Instruction]]:
    found = instructions(DOCKERFILE.read_text())
    assert {word for word, _ in found} <= KNOWN
    return stages(found)


def test_both_stages_start_from_one_base_by_its_tag_and_a_digest(dockerfile: list[list[Instruction]]) -> None:
    before, build, image = dockerfile
    arguments = dict(rest.split("=", 1) for word, rest in before if word == "ARG")
    assert arguments == {"PYTHON": "3.11-slim-bookworm", "PYTHON_DIGEST": '""'}
    assert build[0] == ("FROM", "python:${PYTHON}${PYTHON_DIGEST} AS build")
    assert image[0] == ("FROM", "python:${PYTHON}${PYTHON_DIGEST}")
    pinned_for = (ROOT / "constraints.txt").read_text().splitlines()[0]
    assert "Python 3.11" in pinned_for, "what is pinned was tested with the image's Python"


def test_everything_is_installed_at_the_pinned_versions(dockerfile: list[list[Instruction]]) -> None:
    _, build, image = dockerfile
    installs = [rest for _, rest in build + image if "pip install" in rest]
    assert len(installs) == 2
    assert all("--constraint constraints.txt" in rest for rest in installs)
    extras = (ROOT / "pyproject.toml").read_text()
    wanted = re.search(r"'\.\[(.+)\]'", installs[-1])
    assert wanted
    assert [extra for extra in wanted[1].split(",") if f"\n{extra} = [" not in extras] == []
    assert [rest for word, rest in build if word == "ARG"] == ['CUDA=""', 'TORCH_INDEX=""']
    pinned = re.search(r"^torch==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned
    assert [expand(installs[0], CUDA=cuda).split()[-1] for cuda in ("", "cu130")] == [
        "torch",
        f"torch=={pinned[1]}+cu130",
    ]


def expand(command: str, **variables: str) -> str:
    """Expand a command of the Dockerfile as the shell of the build does."""
    script = f"echo {command}"
    done = subprocess.run(
        ["sh", "-c", script], cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_image_runs_as_the_manifests_user_in_its_home(dockerfile: list[list[Instruction]]) -> None:
    image = dockerfile[-1]
    assert [rest for word, rest in image if word == "USER"] == [f"{USER}:{USER}"]
    after = [word for word, _ in image][[word for word, _ in image].index("USER") :]
    assert after == ["USER", "CMD"], "nothing is done to the image after root is left"
    assert f"--uid {USER} " in next(rest for _, rest in image if "useradd" in rest)
    assert ("WORKDIR", HOME) in image
    environment = next(rest for word, rest in image if word == "ENV")
    assert f"HOME={HOME}" in environment
    assert "PYTHONDONTWRITEBYTECODE=1" in environment, "its root file system may be read-only"


def test_system_packages_leave_no_lists_and_no_recommended_packages(dockerfile: list[list[Instruction]]) -> None:
    (install,) = [rest for stage in dockerfile for _, rest in stage if "apt-get install" in rest]
    assert "--no-install-recommends" in install
    assert "rm -rf /var/lib/apt/lists/*" in install


def test_copied_files_exist_and_the_builder_gets_no_others(dockerfile: list[list[Instruction]]) -> None:
    copied = {source for word, rest in dockerfile[1] if word == "COPY" for source in shlex.split(rest)[:-1]}
    assert all((ROOT / source).exists() for source in copied)
    lines = (DOCKERFILE.parent / "Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert {rule[1:].rstrip("/") for rule in rules if rule.startswith("!")} == copied
    wheel = re.search(r"^packages = \[(.+)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert wheel
    assert set(re.findall(r'"(\w+)"', wheel[1])) <= copied, "what is installed is in the image"


def test_no_secret_goes_into_the_image() -> None:
    text = DOCKERFILE.read_text()
    assert re.findall(r"(?i)(token|secret|passw|_key)", text) == []


def test_make_image_builds_what_the_manifests_name() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^image:.*\n\tdocker build .*--file infra/docker/Dockerfile .*\.$", makefile, re.MULTILINE)
    assert f"--tag {IMAGE.split(':')[0]}:$(VERSION)" in makefile
