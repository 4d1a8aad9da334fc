"""The benchmarks of data and degradations run and tell what they measured."""

import json

import pytest

from benchmarks import degradations, loader
from data_pipelines.degradations.protocols import PROTOCOLS


def test_loader_against_decoding(tmp_path, capsys):
    sizes = ["--width=80", "--height=64", "--crop=32", "--clip-size=16", "--pairs=3", "--batch=2", "--rounds=2"]
    loader.main([*sizes, f"--output={tmp_path / 'loader.json'}"])
    printed = capsys.readouterr().out
    assert "pairs of 80x64 jpg, crops of 32, batches of 2" in printed and "x the time" in printed
    found = json.loads((tmp_path / "loader.json").read_text())
    assert all(value > 0 for value in found.values()) and "load_over_decode" in found
    with pytest.raises(SystemExit):
        loader.main(["--source=/nowhere:train"])


def test_speed_of_degradations(capsys):
    degradations.main(["--images=1", "--size=64", "--only=mioir,task dehaze"])
    lines = capsys.readouterr().out.splitlines()
    named = {name for name in PROTOCOLS if name.startswith("mioir")} | {"task dehaze"}
    assert {line[2:26].strip() for line in lines[1:]} == named and all("ms/MP" in line for line in lines[1:])
    with pytest.raises(SystemExit):
        degradations.main(["--only=fog"])
