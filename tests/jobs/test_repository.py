"""What the documents say about the repository is true: the README's tree, commands, paths, example specs."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer
from typer.main import get_command

from jobs.cli import app
from pipelines.run.calibrate import load_to_calibrate
from pipelines.spec.job import TASKS

ROOT = Path(__file__).parents[2]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "infra/README.md"]


def tracked_files():
    """Paths of the files git has, or would take up."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if answer.returncode != 0:
        pytest.skip("this is no git checkout")
    return {Path(line) for line in answer.stdout.splitlines() if (ROOT / line).exists()}


def parse_tree(text):
    """The paths in the annotated tree.

    The block starts with ```text and one line that ends with "/". Below it two spaces a level; several names on a line
    are separated by spaces; what follows # is a comment; folders end with "/". A folder without lines below it stands
    for all that is in it.
    """
    block = re.search(r"^```text\n[\w.-]+/\s*(?:#.*)?\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert block, "docs/architecture.md has no tree: a block that starts with ```text and a line ending with /"
    paths, parents = [], []
    for line in block[1].splitlines():
        names = line.split("#")[0].split()
        if not names:
            continue
        depth = (len(line) - len(line.lstrip(" "))) // 2 - 1
        parents = parents[:depth]
        assert len(parents) == depth, f"{line!r} is indented deeper than the folder above it"
        paths += [Path(*parents, name) if not name.endswith("/") else f"{Path(*parents, name)}/" for name in names]
        if names[-1].endswith("/"):
            parents.append(names[-1])
    return paths


def test_the_annotated_tree_is_the_disk():
    listed = parse_tree((ROOT / "docs/architecture.md").read_text())
    folders = {str(path).rstrip("/") for path in listed if str(path).endswith("/")}
    files = {str(path) for path in listed if not str(path).endswith("/")}
    whole = {folder for folder in folders if not any(name.startswith(f"{folder}/") for name in files | folders)}
    on_disk = {str(path) for path in tracked_files()}
    parents_on_disk = {str(parent) for path in on_disk for parent in Path(path).parents}

    missing = sorted((files - on_disk) | (folders - parents_on_disk))
    assert not missing, f"docs/architecture.md lists what is not there: {missing}"
    unlisted = sorted(p for p in on_disk - files if not any(p.startswith(f"{folder}/") for folder in whole))
    assert not unlisted, f"docs/architecture.md does not list: {unlisted}"


def test_the_tree_parser_knows_files_folders_and_collapsed_folders():
    text = (
        "```text\nproject/\n  a.txt  b.txt   # two\n  one/\n    c.py    # see d/e.py\n    two/\n  three/  # all\n```\n"
    )
    assert [str(path) for path in parse_tree(text)] == ["a.txt", "b.txt", "one/", "one/c.py", "one/two/", "three/"]


@pytest.mark.parametrize("spec", sorted((ROOT / "jobs").glob("*.yaml")), ids=lambda path: path.name)
def test_each_example_spec_loads(spec, monkeypatch):
    if spec.name.startswith("train"):
        pytest.skip("a training spec, loaded by the tests of training")
    monkeypatch.chdir(ROOT)
    loaded = load_to_calibrate(spec)  # demo.yaml has a quantile of what the demo makes first
    assert loaded.task in TASKS
    assert loaded.output.uri.startswith(str(ROOT))


def commands(document):
    """The command lines in a document's shell blocks."""
    text = (ROOT / document).read_text()
    for block in re.findall(r"^```(?:bash|sh|shell|console)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*|\$", words[0]):
                words = words[1:]
            if words:
                yield words


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_commands_in_a_document_exist(document):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    group = get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    for words in commands(document):
        program, rest = Path(words[0]).name, words[1:]
        if program == "make":
            assert {word for word in rest if "=" not in word} <= targets, words
        elif program == "jointdit":
            assert rest[0] in group.commands, words
            options = {name for parameter in group.commands[rest[0]].params for name in parameter.opts} | {"--debug"}
            assert {word for word in rest if word.startswith("-")} <= options, words
        elif program == "python" and rest[:1] == ["-m"] and rest[1] not in ("pytest", "pip", "venv"):
            assert (ROOT / rest[1].replace(".", "/")).with_suffix(".py").exists(), words


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_paths_in_a_document_exist(document):
    text = (ROOT / document).read_text()
    inside = re.findall(r"`((?:jointdit|pipelines|jobs|tests|infra|\.ci)/[\w./-]*)`", text)
    linked = re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)[^)]*\)", text)
    assert [p for p in inside if not (ROOT / p).exists()] == []
    assert [p for p in linked if not (ROOT / document).parent.joinpath(p).exists()] == []
