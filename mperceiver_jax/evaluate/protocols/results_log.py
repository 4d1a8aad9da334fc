"""What has been measured so far, one line per image, so that an interrupted evaluation goes on where it was."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from data_pipelines.files import write_atomically

NAME = "images.jsonl"
_ALL = "images*.jsonl"


class EvaluationMismatch(ValueError):
    """The folder holds the results of another evaluation."""


class ResultsLog:
    """A file of JSON lines: first what is evaluated, then a row for every image that is done.

    A row is one write of one line: a process that dies leaves at most a torn last line, which counts as
    not written. Processes that share the work write a file each and read those of all.

    Args:
        folder: of the evaluation's results; made if need be.
        identity: everything the figures depend on; JSON values.
        part: name of this process's own file; '' where one process does everything.

    Raises:
        EvaluationMismatch: says what differs.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], part: str = ""):
        self._path = folder / (f"images-{part}.jsonl" if part else NAME)
        self.rows: dict[str, dict[str, Any]] = {}
        identity = json.loads(json.dumps(identity))
        # Our own file last: its rows are the newest that we know of.
        own: dict[str, dict[str, Any]] = {}
        for path in sorted(folder.glob(_ALL), key=lambda path: path == self._path):
            kept = list(_lines(path))
            if kept:
                self._compare(kept[0], identity)
                own = {row["key"]: row for row in kept[1:] if "key" in row}
                self.rows |= own
        own = own if self._path.is_file() else {}
        # Torn lines and rows that were measured again are dropped here.
        lines = [json.dumps(identity), *map(json.dumps, own.values())]
        write_atomically(self._path, ("\n".join(lines) + "\n").encode())

    def done(self, key: str, file_signature: list[int]) -> bool:
        """Whether that image was measured, from files that have not changed since."""
        return key in self.rows and self.rows[key]["file_signature"] == file_signature

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Rows with `key` and `file_signature`; on disk when this returns."""
        text = ""
        for row in rows:
            self.rows[row["key"]] = dict(row)
            text += json.dumps(row) + "\n"
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(descriptor, text.encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @staticmethod
    def forget(folder: Path, part: str = "") -> None:
        """Removes what was measured: this part, or everything."""
        for path in folder.glob(f"images-{part}.jsonl" if part else _ALL):
            path.unlink(missing_ok=True)

    def _compare(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        if changed:
            shown = "; ".join(f"{key}: {before.get(key)} then, {now.get(key)} now" for key in changed)
            raise EvaluationMismatch(
                f"{self._path.parent} holds another evaluation ({shown[:600]}); name another --output, or give "
                "--restart to measure again"
            )


def _lines(path: Path) -> Iterable[dict[str, Any]]:
    for line in path.read_text(errors="replace").splitlines():
        try:
            found = json.loads(line)
        except json.JSONDecodeError:
            return
        if not isinstance(found, dict):
            return
        yield found
