"""The records of finished stages: one JSON file for each, `stages/<stage>.json` in the workdir."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipelines.files import write_atomically


def record_path(workdir: str | Path, stage: str) -> Path:
    return Path(workdir) / "stages" / f"{stage}.json"


def read_record(workdir: str | Path, stage: str) -> dict[str, Any] | None:
    """The record that was written when the stage was finished and evaluated; None before that.

    Raises:
        ValueError: the file is damaged; names it.
    """
    path = record_path(workdir, stage)
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text())
        if not isinstance(record, dict) or "scalars" not in record:
            raise ValueError("it holds no scores")
    except ValueError as error:
        raise ValueError(
            f"{path}: damaged ({error}); delete it, and the stage is evaluated again from its last checkpoint"
        ) from error
    return record


def write_record(workdir: Path, stage: str, record: Mapping[str, Any]) -> None:
    """Writes the record of a stage; its presence means that the stage is done."""
    write_atomically(record_path(workdir, stage), (json.dumps(record, indent=2) + "\n").encode())


def scalars_text(record: Mapping[str, Any]) -> str:
    """The scalars of a record in one line."""
    scalars = {name: value for name, value in record["scalars"].items() if name != "score"}
    return ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in scalars.items())
