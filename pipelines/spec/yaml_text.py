"""YAML 1.1 for specs: PyYAML's parser with limits and strict rules.

limits        size of the text, nesting, number of values with aliases resolved; parsing takes at most about a second
aliases, <<   supported; an alias inside the value that it names is an error
numbers       also 1e10, 1E10, 1e-3, 1e+10, which PyYAML reads as text; a whole number with an exponent is an int
as text       010 and 1:30, which are 8 and 90 in YAML 1.1, and 10 and text in YAML 1.2; dates
tags          only those of plain values: !!str, !!int, !!float, !!bool, !!null, !!seq, !!map
keys          text; a duplicate key is an error
"""

from __future__ import annotations

import re
from typing import Any

from yaml.composer import Composer
from yaml.error import Mark, MarkedYAMLError, YAMLError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.parser import Parser
from yaml.reader import Reader, ReaderError
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

LONGEST_TEXT = 512 * 1024  # characters, or bytes of a file
DEEPEST = 40  # levels of lists and mappings
MOST_VALUES = 20_000  # a spec with more input files should use a folder or a glob
MOST_DIRECTIVES = 10  # %YAML, %TAG
LONGEST_PROBLEM = 200  # characters
LARGEST_INT = 2**63 - 1
EXACT = 2**53  # up to here a float represents all integers

TAG = "tag:yaml.org,2002:"
MERGE = f"{TAG}merge"
BOOL = re.compile(r"(?:(yes|Yes|YES|true|True|TRUE|on|On|ON)|no|No|NO|false|False|FALSE|off|Off|OFF)\Z")
INT = re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0b[01_]*[01]_*|0o[0-7_]*[0-7]_*|0x[0-9a-fA-F_]*[0-9a-fA-F]_*)\Z")
FLOAT = re.compile(
    r"[-+]?(?:(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+"
    r"|\.(?:inf|Inf|INF))\Z|\.(?:nan|NaN|NAN)\Z"
)
NULL = re.compile(r"(?:~|null|Null|NULL|)\Z")


class YamlProblem(Exception):
    """The text is not YAML, or not in the subset for specs.

    `may_quote`: the problem is a message of the parser, which may contain parts of the text.
    """

    def __init__(self, problem: str, mark: Mark | None = None, may_quote: bool = False) -> None:
        super().__init__(problem)
        self.problem = problem if len(problem) <= LONGEST_PROBLEM else f"{problem[:LONGEST_PROBLEM]}..."
        self.may_quote = may_quote
        self.where = f", line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""


class _Tree(Reader, Scanner, Parser, Composer, BaseResolver):
    """PyYAML's parser up to the tree of nodes, with limits on depth and number."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        BaseResolver.__init__(self)
        self._depth = self._values = self._directives = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        self._depth += 1
        self._values += 1
        if self._depth > DEEPEST:
            raise YamlProblem(
                f"lists and mappings are nested more than {DEEPEST} levels deep", self.peek_event().start_mark
            )
        if self._values > MOST_VALUES:
            raise YamlProblem(f"there are more than {MOST_VALUES:,} values", self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def scan_directive(self) -> Any:
        self._directives += 1
        if self._directives > MOST_DIRECTIVES:
            raise YamlProblem(f"there are more than {MOST_DIRECTIVES} directives", self.get_mark())
        return super().scan_directive()


for _kind, _pattern, _first in (
    (f"{TAG}bool", BOOL, "yYnNtTfFoO"),
    (f"{TAG}int", INT, "-+0123456789"),
    (f"{TAG}float", FLOAT, "-+.0123456789"),
    (MERGE, re.compile(r"<<\Z"), "<"),
    (f"{TAG}null", NULL, ["~", "n", "N", ""]),
):
    _Tree.add_implicit_resolver(_kind, _pattern, list(_first))


def parse_yaml(text: str) -> Any:
    """Parse one YAML document; returns None for an empty one. Raises YamlProblem."""
    if len(text) > LONGEST_TEXT:
        raise YamlProblem(f"it is longer than {LONGEST_TEXT // 1024} KiB")
    try:
        root = _Tree(text).get_single_node()
    except ReaderError as error:
        mark = Mark(
            "",
            0,
            text.count("\n", 0, error.position),
            error.position - text.rfind("\n", 0, error.position) - 1,
            None,
            0,
        )
        raise YamlProblem(f"the character U+{error.character:04X} is not allowed in YAML", mark) from None
    except MarkedYAMLError as error:
        problem = error.problem or "the text cannot be parsed"
        if problem.startswith("but ") and error.context:
            problem = f"{error.context}, {problem}"
        raise YamlProblem(problem, error.problem_mark, may_quote=True) from None
    except (YAMLError, ValueError, OverflowError):  # of escapes and versions that are no numbers
        raise YamlProblem("the text cannot be parsed") from None
    return None if root is None else _Values().of(root)


def parse_number(text: str) -> int | float | None:
    """Parse a number; returns None for other text."""
    if INT.match(text):
        digits = text.replace("_", "").lower()
        return int(digits, 0) if len(digits) < 80 else LARGEST_INT + 1
    if not FLOAT.match(text):
        return None
    digits = text.replace("_", "").lower()
    number = float(digits.replace(".inf", "inf").replace(".nan", "nan"))
    return int(number) if "e" in digits and abs(number) < EXACT and number.is_integer() else number


class _Values:
    """Converts nodes to values. Aliases are resolved, so a node with several references is converted each time."""

    def __init__(self) -> None:
        self._made = 0
        self._open: set[int] = set()

    def of(self, node: Node) -> Any:
        self._made += 1
        if self._made > MOST_VALUES:
            raise YamlProblem(f"with its aliases followed it has more than {MOST_VALUES:,} values", node.start_mark)
        if isinstance(node, ScalarNode):
            return _scalar(node)
        if id(node) in self._open:
            raise YamlProblem("an alias stands inside of the value that it names", node.start_mark)
        if len(self._open) >= DEEPEST:
            raise YamlProblem(f"with its aliases followed it is more than {DEEPEST} levels deep", node.start_mark)
        self._open.add(id(node))
        try:
            if isinstance(node, SequenceNode):
                _check_tag(node, "seq")
                return [self.of(item) for item in node.value]
            assert isinstance(node, MappingNode)
            _check_tag(node, "map")
            return self._mapping(node)
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: MappingNode) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        given: dict[str, Any] = {}
        seen: set[str] = set()
        for key_node, value_node in node.value:
            is_merge = key_node.tag == MERGE
            key = "<<" if is_merge else self.of(key_node)
            if not isinstance(key, str):
                kind = "a list or a mapping" if isinstance(key, list | dict) else f"the value {key_node.value[:40]!r}"
                raise YamlProblem(f"a key must be text, found {kind}: quote it", key_node.start_mark)
            if key in seen:
                raise YamlProblem(f"the key {key[:100]!r} is given twice", key_node.start_mark)
            seen.add(key)
            if is_merge:
                merged = self._merged(value_node)
            else:
                given[key] = self.of(value_node)
        return {**merged, **given}

    def _merged(self, node: Node) -> dict[str, Any]:
        """Return the mapping that `<<` merges; of several mappings earlier ones take precedence."""
        found = self.of(node)
        mappings = found if isinstance(found, list) else [found]
        if not all(isinstance(each, dict) for each in mappings):
            raise YamlProblem("<< merges a mapping or a list of mappings, and its value is neither", node.start_mark)
        return {key: value for each in reversed(mappings) for key, value in each.items()}


def _scalar(node: ScalarNode) -> Any:
    kind, text = node.tag.removeprefix(TAG), node.value
    if kind == "str" or (kind == "merge" and not node.style):
        return text
    if kind == "null" and NULL.match(text):
        return None
    if kind == "bool" and (match := BOOL.match(text)):
        return match[1] is not None
    if kind in ("int", "float"):
        number = parse_number(text)
        if isinstance(number, int) and abs(number) > LARGEST_INT:
            raise YamlProblem(
                f"a whole number of {len(text):,} characters is too large: 64 bits must hold it", node.start_mark
            )
        if kind == "float" and number is not None:
            return number if FLOAT.match(text) else float(number)
        if isinstance(number, int):
            return number
    _check_tag(node, "str")
    raise AssertionError  # a tag other than !!str has raised


def _check_tag(node: Node, expected: str) -> None:
    """Raise YamlProblem for a tag that does not fit the value or is not supported in a spec."""
    if node.tag == f"{TAG}{expected}":
        return
    kind = node.tag.removeprefix(TAG)
    if kind in ("str", "int", "float", "bool", "null", "seq", "map"):
        raise YamlProblem(f"the value tagged !!{kind} is not one: correct it, or remove the tag", node.start_mark)
    raise YamlProblem(f"the tag {node.tag[:60]!r} has no meaning in a spec: remove it", node.start_mark)
