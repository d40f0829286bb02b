"""Readable YAML: keys in their order, long texts as blocks, lists indented below their key.

Text that looks like a number is quoted, also where PyYAML itself would read it as text (1e10).
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from pipelines.spec.yaml_text import FLOAT, INT

LINE_ENDS = re.compile("[\r\x85\u2028\u2029]")  # line ends of YAML 1.1: only their escapes survive a round trip


class _Dumper(yaml.SafeDumper):
    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = '"' if LINE_ENDS.search(text) else "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:int", INT, list("-+0123456789"))
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+.0123456789"))


def yaml_text(data: Any) -> str:
    """Return data as one YAML document."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)
