"""The input of a history: small files that are added, changed, moved, removed and restored.

    in/mon/a.csv   in/tue/a.csv   in/mon/d.jsonl   in/mon/c.txt ...      few names, so that two folders share them

The text of a row determines its outcome: depth_range rejects FLAT, NAN and empty texts are quarantined, and rows with
the same TWIN get similar images. Rows of a text file have no ids, and some rows of tables have none.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

FOLDERS = ("mon", "tue")
NAMES = ("a.csv", "a.csv", "b.csv", "d.jsonl", "c.txt", "c.txt", "e.txt")
SHOWN = {"all": ("in",), "mon": ("in/mon",), "tue": ("in/tue",), "both": ("in/mon", "in/tue")}  # input.uri
CHANGES = ("add", "append", "edit", "move", "move and edit", "remove", "restore", "rewrite", "empty", "show")
CHANGES += ("sort", "insert", "take out")


@dataclass(frozen=True)
class InputRow:
    """A row of a file; `id` is None in text files, "" if the row of a table has none."""

    id: str | None
    text: str


@dataclass(frozen=True)
class Content:
    """The rows of a file, and its mtime, which is unique."""

    rows: tuple[InputRow, ...]
    mtime: int  # nanoseconds


@dataclass
class World:
    """The input folder; a change depends on its own seed and on the current files."""

    folder: Path
    files: dict[str, Content] = field(default_factory=dict)
    past: list[tuple[str, Content]] = field(default_factory=list)  # contents before changes
    shown: str = "all"
    contents: dict[tuple[str, str], tuple[InputRow, ...]] = field(default_factory=dict)  # (uri, etag) -> rows

    @property
    def uris(self) -> list[str]:
        """`input.uri` of a job."""
        return [str(self.folder / name) for name in SHOWN[self.shown]]

    def listed(self) -> dict[str, str]:
        """Return uri -> etag of the files in `input.uri`."""
        chosen = [n for n in self.files if any(f"in/{n}".startswith(f"{root}/") for root in SHOWN[self.shown])]
        return {self.uri(name): self.etag(name) for name in sorted(chosen)}

    def uri(self, name: str) -> str:
        return str(self.folder / "in" / name)

    def etag(self, name: str) -> str:
        status = (self.folder / "in" / name).stat()
        return f"{status.st_size}-{status.st_mtime_ns}"

    def begin(self, seed: int) -> None:
        """Write one file to each folder."""
        draw = random.Random(f"{seed}/begin")
        for folder in FOLDERS:
            (self.folder / "in" / folder).mkdir(parents=True)
            name = f"{folder}/{draw.choice(NAMES)}"
            self._write(name, Content(_rows(draw, name, draw.randint(1, 4)), mtime_of(draw)))
        self.shown = draw.choice(sorted(SHOWN))

    def change(self, kind: str, seed: int) -> str:
        """Make a change; return it in words."""
        draw = random.Random(f"{seed}/{kind}")
        if kind == "show":
            self.shown = draw.choice(["all", *sorted(SHOWN)])
            return f"input.uri is {', '.join(SHOWN[self.shown])}"
        if kind == "add":
            name = f"{draw.choice(FOLDERS)}/{draw.choice(NAMES)}"
            return self._put(name, Content(_rows(draw, name, draw.randint(1, 5)), mtime_of(draw)))
        if kind == "restore":
            return self._restore(draw)
        name = draw.choice(sorted(self.files))
        content = self.files[name]
        if kind in ("remove", "move", "move and edit") and self._is_only(name):
            return f"{name} stays, the only file of its folder"
        if kind in ("move", "move and edit"):
            return self._move(draw, name, edit=kind != "move")
        if kind == "remove":
            self._drop(name)
            return f"{name} is removed"
        rows = content.rows
        if kind == "append":
            rows += _rows(draw, name, draw.randint(1, 2))
        elif kind == "edit" and rows:
            rows = _edited(draw, rows)
        elif kind == "sort":
            rows = tuple(draw.sample(rows, len(rows)))
        elif kind == "insert":
            place = draw.randint(0, len(rows))
            copies = tuple(row for row in draw.sample(rows, min(len(rows), 2)) if row.id is None)  # equal lines
            rows = rows[:place] + _rows(draw, name, draw.randint(1, 2)) + copies + rows[place:]
        elif kind == "take out" and len(rows) > 1:
            place = draw.randrange(len(rows))
            rows = rows[:place] + rows[place + 1 :]
        elif kind == "empty" and not name.endswith(".txt"):
            rows = ()
        return self._put(name, Content(rows, mtime_of(draw)))

    def _put(self, name: str, content: Content) -> str:
        if name in self.files:
            self.past.append((name, self.files[name]))
        self._write(name, content)
        return f"{name} now has {[row.id or '-' for row in content.rows]}"

    def _move(self, draw: random.Random, name: str, edit: bool) -> str:
        folder, _, base = name.partition("/")
        places = [f"{other}/{base}" for other in FOLDERS if other != folder]
        places += [
            f"{place}/{other}" for place in FOLDERS for other in NAMES if Path(other).suffix == Path(base).suffix
        ]
        target = draw.choice([place for place in places if place != name])
        content = self.files[name]
        self._drop(name)
        if edit:
            content = Content(_edited(draw, content.rows), mtime_of(draw))
        self._put(target, content)
        return f"{name} is moved to {target}" + (" and edited" if edit else "")

    def _restore(self, draw: random.Random) -> str:
        """Restore an earlier file with its mtime; mostly remove other files that have its rows now."""
        lost = [(name, content) for name, content in self.past if self.files.get(name) != content]
        if not lost:
            return "nothing to restore"
        name, content = draw.choice(lost)
        ids = {row.id for row in content.rows if row.id}
        if draw.random() < 0.95:
            for other in [n for n, c in self.files.items() if n != name and ids & {row.id for row in c.rows}]:
                if not self._is_only(other):
                    self._drop(other)
        self._put(name, content)
        return f"{name} is restored"

    def _is_only(self, name: str) -> bool:
        """Return whether a file is the last one of its folder; it must stay, because a run refuses an empty folder."""
        folder = name.partition("/")[0]
        return sum(other.startswith(f"{folder}/") for other in self.files) == 1

    def _drop(self, name: str) -> None:
        self.past.append((name, self.files.pop(name)))
        (self.folder / "in" / name).unlink()

    def _write(self, name: str, content: Content) -> None:
        path = self.folder / "in" / name
        temporary = self.folder / "new"
        temporary.write_bytes(_bytes(name, content.rows))
        os.utime(temporary, ns=(content.mtime, content.mtime))
        os.replace(temporary, path)
        self.files[name] = content
        self.contents[self.uri(name), self.etag(name)] = content.rows


def mtime_of(draw: random.Random) -> int:
    """Draw an mtime that no other content has."""
    return 10**18 + draw.randrange(10**17)


def _rows(draw: random.Random, name: str, count: int) -> tuple[InputRow, ...]:
    rows = []
    for _ in range(count):
        text = f"w{draw.getrandbits(24):06x}"
        words = ("FLAT", "NAN", "TWIN1", "TWIN2", "")
        text += " " + draw.choices(words, (0.12, 0.08, 0.12, 0.08, 0.6))[0]
        if name.endswith(".txt"):
            rows.append(InputRow(None, text.strip()))
            continue
        text = "" if draw.random() < 0.03 else text
        rows.append(InputRow("" if draw.random() < 0.03 else f"r{draw.getrandbits(24):06x}", text.strip()))
    return tuple(rows)


def _edited(draw: random.Random, rows: tuple[InputRow, ...]) -> tuple[InputRow, ...]:
    if not rows:
        return rows
    place = draw.randrange(len(rows))
    return (*rows[:place], InputRow(rows[place].id, f"w{draw.getrandbits(24):06x} edited"), *rows[place + 1 :])


def _bytes(name: str, rows: Sequence[InputRow]) -> bytes:
    if name.endswith(".txt"):
        return "".join(f"{row.text}\n" for row in rows).encode()
    if name.endswith(".jsonl"):
        return "".join(json.dumps({"id": row.id or None, "prompt": row.text}) + "\n" for row in rows).encode()
    return ("id,prompt\n" + "".join(f"{row.id},{row.text}\n" for row in rows)).encode()
