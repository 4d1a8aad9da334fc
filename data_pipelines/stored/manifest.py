"""The manifest of a folder of stored data: how its contents were made."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipelines.files import write_atomically

FILE = "manifest.json"


def write_manifest(folder: str | os.PathLike[str], manifest: Mapping[str, Any]) -> None:
    """Writes how the contents of a folder are made, before the first of them is written; atomically."""
    path = Path(folder) / FILE
    write_atomically(path, (json.dumps(dict(manifest), indent=2, sort_keys=True) + "\n").encode())


def read_manifest(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """How the contents of a folder were made; None where there is no manifest."""
    path = Path(folder) / FILE
    return json.loads(path.read_text()) if path.is_file() else None
