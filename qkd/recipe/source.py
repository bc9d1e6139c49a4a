"""The content of a recipe file as plain data, with the position of every key and the mistakes found so far."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qkd.errors import Problem
from qkd.options import suggestion

Key = tuple[str, ...]
"""The words of a recipe key: ``("train", "epochs")`` for ``train.epochs``."""
Position = tuple[str, int]
"""File and line, from 1."""


@dataclass
class Source:
    """The data of a recipe, the position of each key, and the mistakes found so far.

    ``folder`` is the recipe's, from which relative paths are looked up. Without ``paths_exist``, a path that does not exist
    is not a mistake.
    """

    file: str
    folder: Path | None = None
    data: Any = field(default_factory=dict)
    positions: dict[Key, Position] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    paths_exist: bool = True

    def report(self, key: Key, message: str) -> None:
        """Add a mistake at a key."""
        self.problems.append(problem_at(self.file, self.positions, key, message))

    def mapping(
        self, key: Key, value: Any, *, known: Collection[str] | None = None, required: Collection[str] = ()
    ) -> dict[str, Any]:
        """The value if it is a mapping, without the keys that are not ``known``; an empty one otherwise.

        Unknown keys, missing ``required`` keys and a value that is no mapping are reported.
        """
        if not isinstance(value, dict):
            self.report(key, f"must be a mapping of keys to values, got {quoted(value)}")
            return {}
        for missing in (word for word in required if word not in value):
            self.report((*key, missing), "required")
        allowed = value if known is None else known
        for unknown in (word for word in value if word not in allowed):
            self.report((*key, unknown), f"unknown key{suggestion(unknown, allowed)}")
        return {word: each for word, each in value.items() if word in allowed}

    def find_path(self, text: str) -> tuple[Path | None, list[Path]]:
        """The file or folder, looked up from the current directory and then from the recipe's, and all paths tried."""
        tried = [Path(text).expanduser().absolute()]
        if self.folder is not None and not Path(text).expanduser().is_absolute():
            tried.append((self.folder / text).absolute())
        return next((path.resolve() for path in tried if path.exists()), None), list(dict.fromkeys(tried))


def problem_at(file: str, positions: dict[Key, Position], key: Key, message: str) -> Problem:
    """A mistake at a key, at the position of the key or of the nearest one above it that stands in the recipe."""
    above = next((key[:end] for end in range(len(key), -1, -1) if key[:end] in positions), ())
    return Problem(*positions.get(above, (file, 1)), ".".join(key) or "recipe", message)


def split_key(positions: Collection[Key], key: Key, message: str) -> tuple[Key, str]:
    """Move the words in front of a message (``first: 9 is ...``) that are keys below ``key`` in the recipe to the key.

    -> the longer key, the rest of the message
    """
    word, colon, rest = message.partition(": ")
    return split_key(positions, (*key, word), rest) if colon and (*key, word) in positions else (key, message)


def quoted(value: Any) -> str:
    """A value for a message: as YAML writes it, cut to 60 characters."""
    words = {True: "true", False: "false", None: "null"}
    text = words[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def joined(paths: Iterable[Path]) -> str:
    """Paths separated by commas, for a message."""
    return ", ".join(map(str, paths))
