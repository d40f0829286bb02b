"""Text that leaves the process: without credentials, and with control characters escaped.

Exceptions of clients and servers repeat addresses, headers and settings, and names and prompts are untrusted. So
everything that is printed, logged or stored as an error passes through here.
"""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path
from urllib.parse import quote

SHORTEST = 8  # characters; shorter values would mask ordinary words
LONG_WORD = re.compile(r"(\S{300})\S+")
LONGEST_SENTENCE = 1000  # characters
LONGEST_REASON = 200  # characters
LONGEST_VALUE = 200  # characters; long, because a truncated path identifies nothing
SECRET_NAME = re.compile(
    r"(SECRET|TOKEN|PASSWORD|PASSWD|PASSPHRASE|KEY|KEY_ID|CONNECTION_STRING|WEBHOOK|WEBHOOK_URL)$", re.IGNORECASE
)
AWS_FILES = (("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"), ("AWS_CONFIG_FILE", "~/.aws/config"))
AWS_SECRET = re.compile(r"^\s*aws_(?:access_key_id|secret_access_key|session_token)\s*=\s*(\S+)", re.MULTILINE)
# user:password@ or token@ before a host; Azure's container@account is an address. A store's key may have a slash, and a
# bucket has no colon.
USER_INFO = re.compile(
    r"\b(?:((?!abfss?:|az:)[a-z0-9+]+://|abfss?://[^/\s@:]*:|az://[^/\s@:]*:)[^/\s@'\"]+@"
    r"|((?:s3a?|gc?s)://)[^/\s@:'\"]*:[^\s@'\"]+@)",
    re.IGNORECASE,
)
LOOKS_SECRET = re.compile(
    r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bhf_[A-Za-z0-9]{30,}"
    r"|(?<=Signature=)[^&\s'\"]+|(?<=redential=)[^&\s'\"]+|(?<=Security-Token=)[^&\s'\"]+|(?<=[?&]sig=)[^&\s'\"]+"
)


def known_secrets() -> list[str]:
    """Return values of the environment and the usual AWS files whose names mark them as credentials, longest first."""
    values = {value for name, value in os.environ.items() if SECRET_NAME.search(name)}
    for variable, usual in AWS_FILES:
        path = Path(os.environ.get(variable) or usual).expanduser()
        try:
            values |= _secrets_in(path, path.stat().st_mtime_ns)
        except OSError:  # most users have no such file, and an unreadable one cannot have leaked anything
            continue
    return sorted((value for value in values if len(value) >= SHORTEST), key=len, reverse=True)


@functools.lru_cache(maxsize=8)
def _secrets_in(path: Path, modified: int) -> frozenset[str]:
    return frozenset(AWS_SECRET.findall(path.read_text(encoding="utf-8", errors="replace")))


def mask_secrets(text: str) -> str:
    """Replace known credentials, also as part of a url, and what looks like credentials, by ***."""
    for value in known_secrets():
        text = text.replace(value, "***").replace(quote(value, safe=""), "***")
    return LOOKS_SECRET.sub("***", USER_INFO.sub(lambda match: f"{match[1] or match[2]}***@", text))


def printable(text: str) -> str:
    """Return the text on one line, with invisible characters (escapes, line ends, right-to-left marks) escaped."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def reason_of(error: BaseException, longest: int = LONGEST_REASON) -> str:
    """Return the message of an exception on one line and truncated, or its type where it has no message."""
    return " ".join(str(error).split())[:longest] or type(error).__name__


def shortened(text: str) -> str:
    """Return a value for a message, with control characters escaped and truncated."""
    text = printable(text)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."


def quoted(value: object) -> str:
    """Return any value for a message, quoted as in Python, on one line and truncated."""
    return shortened(" ".join(repr(value).split()))


def shown_message(text: str) -> str:
    """Return a message that may repeat values, on one line and with long values truncated."""
    line = LONG_WORD.sub(r"\1...", printable(text))
    return line if len(line) <= LONGEST_SENTENCE else f"{line[:LONGEST_SENTENCE]}..."


def markdown_text(text: str) -> str:
    """Return untrusted text as one line of plain text in Markdown, safe in a table cell too."""
    line = printable(mask_secrets(" ".join(text.split()))).replace("&", "&amp;")
    line = re.sub(r"([\\`*_{}\[\]<>#|!~@$])", r"\\\1", line)
    return re.sub(r":(?=//)|(?<=www)\.", r"\\\g<0>", line)  # so that addresses do not become links
