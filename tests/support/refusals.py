"""Refusals: that the right mistake is named, by its stable key, and that its wording is the one that was read last.

    def test_a_plan_needs_phases(refused: Refused) -> None:
        with refused(PlanError, "plan.no-phases"):
            rehearse(...)

The wording stands in ``tests/golden/messages``, a file for each file of tests, an entry for each test. `make golden` writes
it anew; read the diff before committing it. Paths of the test's own folder are written as TMP.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from qkd.errors import QkdError

FOLDER = Path(__file__).parent.parent / "golden" / "messages"
Refused = Callable[[type[QkdError], str], AbstractContextManager["pytest.ExceptionInfo[QkdError]"]]


class Messages:
    """The wordings of one test, in the order in which they are met."""

    def __init__(self, test: str, file: Path, tmp: Path, *, rewrite: bool) -> None:
        self.test, self.file, self.tmp, self.rewrite = test, file, tmp, rewrite
        self.met: list[dict[str, str]] = []

    @contextlib.contextmanager
    def refused(self, error: type[QkdError], key: str) -> Iterator[pytest.ExceptionInfo[QkdError]]:
        with pytest.raises(error) as info:
            yield info
        assert info.value.key == key, f"{info.value.key}: {info.value}"
        self.met.append({"key": info.value.key, "message": self._plain(str(info.value))})
        if not self.rewrite:
            assert self.met == self._kept()[: len(self.met)], "another wording; `make golden` writes it anew"

    def _plain(self, message: str) -> str:
        for folder in dict.fromkeys((str(self.tmp), os.path.realpath(self.tmp))):
            message = message.replace(folder, "TMP")
        return message

    def _kept(self) -> list[dict[str, str]]:
        kept: dict[str, list[dict[str, str]]] = json.loads(self.file.read_text()) if self.file.is_file() else {}
        return kept.get(self.test, [])

    def write(self) -> None:
        """Keep what was met, beside what other tests of the same file met. For one process at a time."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        kept = json.loads(self.file.read_text()) if self.file.is_file() else {}
        self.file.write_text(json.dumps(dict(sorted({**kept, self.test: self.met}.items())), indent=1) + "\n")


@pytest.fixture
def refused(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Refused]:
    """``with refused(PlanError, "plan.no-phases"):`` — the block raises that error, with that key and the known wording."""
    place = request.path.relative_to(FOLDER.parent.parent).with_suffix(".json")
    rewrite = bool(request.config.getoption("--rewrite-golden"))
    messages = Messages(request.node.name, FOLDER / place, tmp_path, rewrite=rewrite)
    yield messages.refused
    if rewrite and messages.met:
        messages.write()
