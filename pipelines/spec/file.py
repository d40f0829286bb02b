"""Read a YAML file and `--set` overrides, and describe validation errors in one sentence."""

from __future__ import annotations

import difflib
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from jointdit.errors import SpecError
from pipelines.spec.yaml_text import DEEPEST, LARGEST_INT, LONGEST_TEXT, YamlProblem, parse_yaml
from pipelines.store.safe_text import USER_INFO, known_secrets, printable, shown_message

CREDENTIAL_KEY = re.compile(
    r"(access_?key|secret|password|passwd|token|credential|api_?key|sas_?key|account_?key|connection_?string)",
    re.IGNORECASE,
)
CREDENTIAL_VALUE = re.compile(
    r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bhf_[A-Za-z0-9]{30,}|-----BEGIN [A-Z ]*PRIVATE KEY"
    r"|[?&;](?:x-(?:amz|goog|oss)-(?:signature|credential|security-token)|awsaccesskeyid|googleaccessid|key-pair-id|signature|sig|(?:access_?|auth_?)?token"
    r"|password|secret|(?:secret|api|account)_?key)=|\baccountkey=",
    re.IGNORECASE,
)
ADVICE = "credentials come from the environment or the usual AWS files, never from the spec"
AMBIGUOUS = re.compile(r"[-+]?(?:0[0-9_]+|[0-9][0-9_]*(?::[0-5]?[0-9])+)(?:\.[0-9_]*)?")
UNUSABLE = re.compile("[\0\ud800-\udfff]")
LONGEST_VALUE = 100_000  # characters, the limit of a row's prompt
LONGEST_SHOWN = 100  # characters of a value in a message
SHORTEST_SECRET = 16  # characters; shorter secrets of the environment could be ordinary words


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds one mapping.

    Raises:
        SpecError: the file does not exist, is not readable, is not YAML (with the line), or is not a mapping.
    """
    try:
        data = parse_yaml(_read_text(path))
    except YamlProblem as error:
        raise SpecError(f"{path}{error.where}: this is not valid YAML, {error.problem}.") from None
    if not isinstance(data, dict):
        found = "nothing" if data is None else f"a {type(data).__name__}"
        raise SpecError(f"{path} must hold a mapping of keys such as task, input and output, found {found}.")
    return data


def _read_text(path: Path) -> str:
    """Read the text of a file, of a pipe of the shell (`<(...)`), or of standard input, up to the limit of a spec.

    Other special files are refused, because reading a FIFO or a device may never end.
    """
    try:
        if not path.is_dir() and not stat.S_ISREG(path.stat().st_mode) and not str(path).startswith("/dev/"):
            raise SpecError(f"{path} is not a regular file: give the path of a job spec in YAML.")
        with path.open("rb") as file:
            data = file.read(LONGEST_TEXT + 1)
        return data.decode("utf-8-sig")
    except SpecError:
        raise
    except FileNotFoundError:
        raise SpecError(f"{path} does not exist: give the path of a job spec in YAML.") from None
    except IsADirectoryError:
        raise SpecError(f"{path} is a folder: give the path of a job spec in YAML.") from None
    except UnicodeDecodeError as error:
        if len(data) > LONGEST_TEXT:
            raise SpecError(f"{path} is longer than {LONGEST_TEXT // 1024} KiB: give a job spec in YAML.") from None
        raise SpecError(f"{path} cannot be read as text: byte {error.start} is not UTF-8; save it in UTF-8.") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "the name is not valid"
        raise SpecError(f"{path} cannot be read as text ({reason.lower()}): give a job spec in YAML.") from None


def apply_overrides(data: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return `data` with overrides such as "a.b=value" applied. Values are YAML; missing sections are created.

    Raises:
        SpecError: an override has no "=", its value is not YAML, or its path goes through a value.
    """
    for override in overrides:
        path, equals, text = override.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            if CREDENTIAL_KEY.search(override) or _holds_credential(override, _long_secrets()):
                raise SpecError(f"a --set that is not of the form key=value looks like a credential: {ADVICE}.")
            raise SpecError(f"--set {shown_value(override)} is not of the form key=value, for example model.steps=4.")
        shown = path if len(path) <= LONGEST_SHOWN else f"{path[:LONGEST_SHOWN]}..."
        if len(keys) > DEEPEST:
            raise SpecError(f"--set {shown} has more than {DEEPEST} levels, which no spec has.")
        try:
            value = parse_yaml(text)
        except YamlProblem as error:
            advice = "quote it" if error.may_quote else error.problem
            raise SpecError(f"--set {shown} has a value that is not valid YAML: {advice}.") from None
        data = _set(data, keys, value, shown)
    return data


def _set(section: Any, keys: list[str], value: Any, path: str) -> Any:
    if not keys:
        return value
    if isinstance(section, list | tuple):
        items = list(section)
        if not keys[0].isdecimal() or len(keys[0]) > 9 or int(keys[0]) >= len(items):
            raise SpecError(f"--set {path} names item {shown_value(keys[0])} of a list of {len(items)}: count from 0.")
        items[int(keys[0])] = _set(items[int(keys[0])], keys[1:], value, path)
        return items
    if section is not None and not isinstance(section, dict):
        raise SpecError(
            f"--set {path} goes through {shown_value(section)}, which is not a section: remove what follows it."
        )
    section = dict(section or {})
    section[keys[0]] = _set(section.get(keys[0]), keys[1:], value, path)
    return section


def refuse_credentials(value: Any) -> None:
    """Refuse keys and values that look like credentials, because the spec is copied to the output.

    `notify.webhook` may contain one, as addresses of chat services do, and is not copied.

    Raises:
        SpecError: names the field, without the value.
    """
    secrets = _long_secrets()
    for path, item in _walk(value):
        *sections, key = path or ("the spec",)
        where = shown_path(sections)
        if _holds_credential(key, secrets):
            raise SpecError(f"{where} has a key that holds what looks like a credential: {ADVICE}.")
        if CREDENTIAL_KEY.search(key):
            raise SpecError(f"{shown_path(path)} looks like a credential: {ADVICE}.")
        if isinstance(item, str) and path != ("notify", "webhook") and _holds_credential(item, secrets):
            raise SpecError(f"{shown_path(path)} holds what looks like a credential: {ADVICE}.")


def refuse_unusable(value: Any) -> None:
    """Refuse keys and values that are invalid in all fields, also in a spec that is given as a dict.

    Raises:
        SpecError: a key is not text, text has NULs, surrogates or too many characters, or a number exceeds 64 bits.
    """
    for path, item in _walk(value):
        where = shown_path(path)
        for text in (path[-1] if path else "", item):
            if isinstance(text, str) and UNUSABLE.search(text):
                raise SpecError(f"{where} contains a NUL or a surrogate: write it as text in UTF-8.")
        if isinstance(item, str) and len(item) > LONGEST_VALUE:
            raise SpecError(f"{where} has {len(item):,} characters: give at most {LONGEST_VALUE:,}.")
        if isinstance(item, int) and abs(item) > LARGEST_INT:
            raise SpecError(f"{where} is a number that does not fit in 64 bits: give a smaller one.")


def _walk(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield each value with its path of keys. Raises SpecError for keys that are not text, and for deep nesting."""
    yield path, value
    if len(path) > DEEPEST:
        raise SpecError(f"{shown_path(path[:3])} is nested more than {DEEPEST} levels deep, which no field is.")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise SpecError(f"{shown_path(path)} has the key {shown_value(key)}, which is not text: quote it.")
            yield from _walk(item, (*path, key))
    elif isinstance(value, list | tuple):
        for position, item in enumerate(value):
            yield from _walk(item, (*path, str(position)))


def _long_secrets() -> list[str]:
    return [secret for secret in known_secrets() if len(secret) >= SHORTEST_SECRET]


def _holds_credential(text: str, secrets: Sequence[str]) -> bool:
    if CREDENTIAL_VALUE.search(text) or USER_INFO.search(text):
        return True
    return any(secret in text for secret in secrets)


RENAMED_KEYS = {"rgb_refresh": "condition_refresh", "optimiser": "optimizer"}
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
    "too_long": "a list of at most {max_length}",
    "too_short": "a list of at least {min_length}",
    "string_too_long": "text of at most {max_length} characters",
    "string_too_short": "text of at least {min_length} characters",
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


def shown_path(path: Sequence[object]) -> str:
    """Format the path of keys to a value on one line, shortened if it is long."""
    text = printable(".".join(str(key) for key in path[:10]))
    return (text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}...") or "the spec"


def shown_value(value: Any) -> str:
    """Format a value for a message, shortened if it is long."""
    text = repr(value[:LONGEST_SHOWN]) if isinstance(value, str) else repr(value)
    if len(text) > LONGEST_SHOWN + 2:
        text = text[:LONGEST_SHOWN] + "..."
    return f"{text}..." if isinstance(value, str) and len(value) > LONGEST_SHOWN else text


def first_sentence(error: ValidationError, model: type[BaseModel]) -> str:
    """Describe the first problem of a validation error in one sentence: field, what was found, what to do."""
    problems = error.errors()
    problem = next(
        (p for p in problems if p["type"] == "extra_forbidden"), problems[0]
    )  # other problems may follow from a misspelt key
    location = list(problem["loc"])
    field = shown_path(location) if location else ""
    kind, context = problem["type"], problem.get("ctx", {})
    found = f", found {shown_value(problem['input'])}"
    if field == "notify" or field.startswith("notify."):
        found = ""  # the address may be a secret
    if kind == "extra_forbidden":
        return _unknown_key(location, field, model)
    if kind == "missing":
        return f"{field} is missing: add it to the spec."
    if kind == "value_error":
        message = shown_message(str(context["error"]))
        names_its_field = message.startswith(("input.", "output."))
        if names_its_field or not field:
            return f"{message}."
        return f"{field} {message}." if message.startswith("must ") else f"{field}: {message}."
    if kind == "literal_error":
        choices = str(context["expected"]).replace("'", "")
        return f"{field} must be {choices}{found}."
    if kind in BOUNDS:
        bound, words = BOUNDS[kind]
        return f"{field} must be {words} {context[bound]}{found}."
    if kind in KINDS:
        return f"{field} must be {KINDS[kind].format(**context)}{found}{_hint(kind, problem['input'])}."
    return f"{field}: {problem['msg']}{found}."


def _hint(kind: str, found: Any) -> str:
    """Return advice for a value that YAML reads in another way than its author expects."""
    if kind == "string_type" and isinstance(found, bool):
        return ": quote it, because YAML reads yes, no, on and off as true and false"
    if kind in ("int_type", "float_type") and isinstance(found, str) and AMBIGUOUS.fullmatch(found):
        return ": YAML readers do not agree on this number; write it in decimal digits, without a leading 0 or a colon"
    return ""


def translate_recorded(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored spec with its keys' current names and without `notify`, which earlier code wrote.

    The address in `notify` may be a secret.
    """
    return {
        name: {RENAMED_KEYS.get(key, key): value for key, value in section.items()} if name == "model" else section
        for name, section in spec.items()
        if name != "notify"
    }


def _unknown_key(location: list[int | str], field: str, model: type[BaseModel]) -> str:
    if location[-1] in RENAMED_KEYS:
        return f"{field} was renamed: write {RENAMED_KEYS[str(location[-1])]} instead of {location[-1]}."
    section: Any = model
    for part in location[:-1]:
        if part not in section.model_fields:
            return f"{field} is not a key of the spec: remove it."
        annotation = section.model_fields[part].annotation
        section = next((a for a in get_args(annotation) if hasattr(a, "model_fields")), annotation)  # Section | None
        if not hasattr(section, "model_fields"):
            return f"{field} is not a key of the spec: remove it."
    names = sorted(section.model_fields)
    nearest = difflib.get_close_matches(str(location[-1]), names, n=1, cutoff=0.5)
    advice = f"did you mean {nearest[0]}?" if nearest else f"the keys here are {', '.join(names)}."
    return f"{field} is not a key of the spec: {advice}"
