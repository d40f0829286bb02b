"""From a YAML file and `--set` overrides to a dict, and from a validation error to one sentence."""

from __future__ import annotations

import difflib
import re
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from jointdit.errors import SpecError
from pipelines.safe_text import USER_INFO, known_secrets

CREDENTIAL_KEY = re.compile(
    r"(access_?key|secret|password|passwd|token|credential|api_?key|sas_?key|account_?key|connection_?string)",
    re.IGNORECASE,
)
CREDENTIAL_VALUE = re.compile(
    r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bhf_[A-Za-z0-9]{30,}|-----BEGIN [A-Z ]*PRIVATE KEY"
    r"|[?&;](?:x-amz-(?:signature|credential|security-token)|awsaccesskeyid|signature|sig|(?:access_?|auth_?)?token"
    r"|password|secret|(?:secret|api|account)_?key)=|\baccountkey=",
    re.IGNORECASE,
)
ADVICE = "credentials come from the environment or the usual AWS files, never from the spec"
SHORTEST_SECRET = 16  # characters of the environment's secrets that are looked for: shorter ones could be names


class _UniqueKeys(yaml.SafeLoader):
    """YAML where a key given twice is an error; PyYAML keeps the last one in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str) -> Any:
    """Parse one YAML document; a key given twice is an error. Raises yaml.YAMLError."""
    return yaml.load(text, Loader=_UniqueKeys)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds one mapping.

    Raises:
        SpecError: no such file, not readable, not YAML (with the line), or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SpecError(f"{path} does not exist: give the path of a job spec in YAML.") from None
    except IsADirectoryError:
        raise SpecError(f"{path} is a folder: give the path of a job spec in YAML.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path} cannot be read as text ({type(error).__name__}): give a job spec in YAML.") from None
    try:
        data = parse_yaml(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "the text cannot be parsed"
        raise SpecError(f"{path}{where}: this is not valid YAML, {problem}.") from None
    if not isinstance(data, dict):
        found = "nothing" if data is None else f"a {type(data).__name__}"
        raise SpecError(f"{path} must hold a mapping of keys such as task, input and output, found {found}.")
    return data


def apply_overrides(data: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return `data` with each "a.b=value" set; values are YAML, sections that are missing are made.

    Raises:
        SpecError: an override without "=", with a value that is not YAML, or through something that is not a section.
    """
    for override in overrides:
        path, equals, text = override.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            if CREDENTIAL_KEY.search(override) or _holds_credential(override):
                raise SpecError(f"a --set that is not of the form key=value looks like a credential: {ADVICE}.")
            raise SpecError(f"--set {override!r} is not of the form key=value, for example model.steps=4.")
        try:
            value = parse_yaml(text)
        except yaml.YAMLError:
            raise SpecError(f"--set {path} has a value that is not valid YAML: quote it.") from None
        data = _set(data, keys, value, path)
    return data


def _set(section: Any, keys: list[str], value: Any, path: str) -> Any:
    if not keys:
        return value
    if isinstance(section, list | tuple):
        items = list(section)
        if not keys[0].isdecimal() or int(keys[0]) >= len(items):
            raise SpecError(f"--set {path} names item {keys[0]!r} of a list of {len(items)}: count from 0.")
        items[int(keys[0])] = _set(items[int(keys[0])], keys[1:], value, path)
        return items
    if section is not None and not isinstance(section, dict):
        raise SpecError(f"--set {path} goes through {section!r}, which is not a section: remove what follows it.")
    section = dict(section or {})
    section[keys[0]] = _set(section.get(keys[0]), keys[1:], value, path)
    return section


def refuse_credentials(value: Any, path: str = "") -> None:
    """Refuse keys and values that look like credentials, without repeating the value.

    Raises:
        SpecError: names the field; the spec is copied into the output, where everybody reads it.
    """
    if isinstance(value, dict):
        for key, item in value.items():
            if _holds_credential(str(key)):
                raise SpecError(f"{path or 'the spec'} has a key that holds what looks like a credential: {ADVICE}.")
            name = f"{path}.{key}" if path else str(key)
            if CREDENTIAL_KEY.search(str(key)):
                raise SpecError(f"{name} looks like a credential: {ADVICE}.")
            refuse_credentials(item, name)
    elif isinstance(value, list | tuple):
        for position, item in enumerate(value):
            refuse_credentials(item, f"{path}.{position}")
    elif isinstance(value, str) and _holds_credential(value):
        raise SpecError(f"{path} holds what looks like a credential: {ADVICE}.")


def refuse_broken_text(value: Any, path: str = "") -> None:
    """Refuse text with a lone surrogate: no file, table or message of the output could hold it.

    Python makes them of a name on disk or a word of the command line that is not UTF-8, and of "\\udcff" in YAML.

    Raises:
        SpecError: names the field.
    """
    if isinstance(value, dict):
        for key, item in value.items():
            refuse_broken_text(str(key), f"a key of {path or 'the spec'}")
            refuse_broken_text(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for position, item in enumerate(value):
            refuse_broken_text(item, f"{path}.{position}")
    elif isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise SpecError(f"{path} {value!r} is not valid Unicode: write it in UTF-8, or rename the file.") from None


def _holds_credential(text: str) -> bool:
    if CREDENTIAL_VALUE.search(text) or USER_INFO.search(text):
        return True
    return any(secret in text for secret in known_secrets() if len(secret) >= SHORTEST_SECRET)


KINDS = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a section with keys of its own",
    "model_attributes_type": "a section with keys of its own",
}
BOUNDS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


def first_sentence(error: ValidationError, model: type[BaseModel]) -> str:
    """The first problem of a validation error as one sentence: field, what was found, what to do."""
    problems = error.errors()
    problem = next(
        (p for p in problems if p["type"] == "extra_forbidden"), problems[0]
    )  # a misspelt key explains the rest
    location = list(problem["loc"])
    field = ".".join(str(part) for part in location)
    found, kind, context = problem["input"], problem["type"], problem.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown_key(location, field, model)
    if kind == "missing":
        return f"{field} is missing: add it to the spec."
    if kind == "value_error":
        message = str(context["error"])
        names_its_field = message.startswith(("input.", "output."))
        if names_its_field or not field:
            return f"{message}."
        return f"{field} {message}." if message.startswith("must ") else f"{field}: {message}."
    if kind == "literal_error":
        choices = str(context["expected"]).replace("'", "")
        return f"{field} must be {choices}, found {found!r}."
    if kind in BOUNDS:
        bound, words = BOUNDS[kind]
        return f"{field} must be {words} {context[bound]}, found {found!r}."
    if kind in KINDS:
        return f"{field} must be {KINDS[kind]}, found {found!r}."
    return f"{field}: {problem['msg']}, found {found!r}."


def _unknown_key(location: list[int | str], field: str, model: type[BaseModel]) -> str:
    section: Any = model
    for part in location[:-1]:
        annotation = section.model_fields[part].annotation
        section = next((a for a in get_args(annotation) if hasattr(a, "model_fields")), annotation)  # Section | None
    names = sorted(section.model_fields)
    nearest = difflib.get_close_matches(str(location[-1]), names, n=1, cutoff=0.5)
    advice = f"did you mean {nearest[0]}?" if nearest else f"the keys here are {', '.join(names)}."
    return f"{field} is not a key of the spec: {advice}"
