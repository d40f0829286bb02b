"""The documents match the repository: tree, links, paths, commands, example specs. The packages keep their limits."""

import ast
import graphlib
import os
import re
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.main import get_command

from jobs.cli import app
from pipelines.run.calibrate import load_to_calibrate
from pipelines.spec.job import TASKS

ROOT = Path(__file__).parents[2]
PACKAGES = ("jointdit", "pipelines", "jobs")
DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    "infra/README.md",
    *sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")),
]
READMES = [path for package in PACKAGES for path in (ROOT / package).rglob("*.md") if "vendor" not in path.parts]
PAGES = sorted({*DOCUMENTS, "infra/throughput.md", *(str(path.relative_to(ROOT)) for path in READMES)})
BLOCK = re.compile(r"^(?P<run><!-- run -->\n)?```(?P<language>\w+)\n(?P<text>.*?)^```", re.DOTALL | re.MULTILINE)
HEREDOC = re.compile(r"(<<'(\w+)')\n.*?^\2$", re.DOTALL | re.MULTILINE)
OTHER_PROGRAMS = {"cat", "export", "head", "helm", "kubectl", "pip", "sed", "source"}


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


@pytest.mark.parametrize("spec", sorted((ROOT / "jobs").glob("[!t]*.yaml")), ids=lambda path: path.name)
def test_each_example_spec_of_a_job_loads(spec, monkeypatch):
    monkeypatch.chdir(ROOT)
    loaded = load_to_calibrate(spec)  # demo.yaml has a quantile of what the demo makes first
    assert loaded.task in TASKS
    assert loaded.output.uri.startswith(str(ROOT))


def commands(document):
    """The command lines in a document's shell blocks, without redirections; a pipeline gives one for each part."""
    for block in BLOCK.finditer((ROOT / document).read_text()):
        if block["language"] not in ("bash", "sh"):
            continue
        text = HEREDOC.sub(r"\1", block["text"]).replace("\\\n", " ")
        for line in text.splitlines():
            words = []
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            for token in [*lexer, ";"]:
                if set(token) <= set("();<>|&"):
                    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                        words = words[1:]
                    if words:
                        yield words
                    words = []
                    if set(token) & set("<>"):
                        break  # a file name follows
                else:
                    words.append(token)


def options_of(command):
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}


@pytest.mark.parametrize("document", PAGES)
def test_the_commands_in_a_document_exist(document):
    """The command line parses each command of ours: name, arguments, options and their values."""
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    group = get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    for words in commands(document):
        program, rest = Path(words[0]).name, words[1:]
        if program == "make":
            assert {word for word in rest if "=" not in word} <= targets, words
        elif program == "jointdit" and rest[0].startswith("-"):
            assert set(rest) <= options_of(group), words
        elif program == "jointdit":
            assert rest[0] in group.commands, words
            group.commands[rest[0]].make_context(rest[0], [word for word in rest[1:] if word != "--debug"])
        elif program == "python" and rest[:1] == ["-m"] and rest[1] not in ("pytest", "pip", "venv"):
            path = ROOT / rest[1].replace(".", "/")
            assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), words
        elif program != "python":
            assert program in OTHER_PROGRAMS or (ROOT / program).exists() or (ROOT / ".ci" / program).exists(), words


def test_an_unknown_option_in_a_document_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```bash\nA=1 jointdit plan a.yaml --jsn | cat > x\ncat > y <<'END'\njointdit nothing\nEND\n```\n")
    assert list(commands(page)) == [["jointdit", "plan", "a.yaml", "--jsn"], ["cat"], ["cat"]]
    with pytest.raises(Exception, match="No such option"):
        test_the_commands_in_a_document_exist(page)


@pytest.mark.parametrize("document", PAGES)
def test_the_options_named_in_the_text_exist(document):
    group = get_command(app)
    text = BLOCK.sub("", (ROOT / document).read_text())
    for inline in re.findall(r"`jointdit ([^`]+)`", text):
        name, *rest = inline.split()
        if name.startswith("-"):
            assert name in options_of(group) | {"--help"}, inline
        elif not name.isupper():
            assert name in group.commands, inline
            options = {word.split("=")[0] for word in rest if re.match(r"--?[a-z]", word)}
            assert options <= options_of(group.commands[name]) | {"--help", "--debug"}, inline


@pytest.mark.slow
@pytest.mark.parametrize("document", ["README.md", "docs/first-hour.md"])
def test_the_marked_blocks_of_a_document_run_as_one_sequence(document, tmp_path):
    shim = tmp_path / "bin" / "jointdit"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m jobs.cli "$@"\n')
    shim.chmod(shim.stat().st_mode | stat.S_IXUSR)
    path = os.pathsep.join([str(shim.parent), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    programs = {"bash": ["bash", "-euo", "pipefail"], "python": [sys.executable, "-"]}
    (tmp_path / "work").mkdir()
    marked = [block for block in BLOCK.finditer((ROOT / document).read_text()) if block["run"]]
    assert {block["language"] for block in marked} == {"bash", "python"}
    for block in marked:
        done = subprocess.run(
            programs[block["language"]],
            input=block["text"],
            cwd=tmp_path / "work",
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{block['text']}\n{done.stdout}\n{done.stderr}"


def anchors(text):
    """The anchors that a Markdown page has, one for each heading."""
    titles = re.findall(r"^#+ (.+)$", BLOCK.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_links_and_paths_in_a_document_exist(document):
    page = ROOT / document
    text = page.read_text()
    inside = re.findall(r"`((?:jointdit|pipelines|jobs|tests|infra|docs|\.ci)/[\w./-]*)`", text)
    assert [path for path in inside if not (ROOT / path).exists()] == []
    for link in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", text):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


def test_each_page_is_linked_from_the_readme():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 200
    assert [name for name in DOCUMENTS if name != "README.md" and f"({name}" not in text] == []


def test_the_tops_of_the_packages_stay_small():
    def names(package):
        """Files and folders with code; folders that git left behind hold caches alone."""
        return {path.relative_to(ROOT / package).parts[0] for path in (ROOT / package).rglob("*.py")} - {"__init__.py"}

    assert len(names("pipelines")) <= 12, "a new module belongs to one of the rooms"
    assert len(list((ROOT / "jointdit").glob("*.py"))) <= 6, "a new module belongs to one of the folders"


def modules():
    """The Python files of the three packages by their module names."""
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def imports(tree, known):
    """The modules that a file imports, also inside of functions, but not for type checkers alone."""
    statements = [n for n in tree.body if not (isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test))]
    for node in (node for statement in statements for node in ast.walk(statement)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield from [each for each in (name if name in known else node.module,) if each in known]


def find_cycle(sources):
    """The modules of one import cycle in {module: source}, or None."""
    graph = {name: {*imports(ast.parse(text), sources)} - {name} for name, text in sources.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return None


def test_no_file_is_too_long_and_no_imports_are_circular():
    sources = {name: path.read_text() for name, path in modules().items()}
    texts = sources | {path.name: path.read_text() for path in (ROOT / "tests").rglob("*.py")}
    assert {name: n for name, text in texts.items() if (n := len(text.splitlines())) > 400} == {}
    assert find_cycle(sources) is None


def test_a_cycle_is_found_and_imports_for_type_checkers_are_left_out():
    inside = "def f():\n    from p.a import x\n"
    assert set(find_cycle({"p.a": "from p import b", "p.b": inside})) == {"p.a", "p.b"}
    assert set(find_cycle({"p.a": "import p.b", "p.b": "from p.a import x"})) == {"p.a", "p.b"}
    assert find_cycle({"p.a": "from p import b", "p.b": "if TYPE_CHECKING:\n    from p.a import x\n"}) is None
