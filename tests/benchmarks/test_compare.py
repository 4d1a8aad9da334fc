"""The table of systems: a row for each, with what a short training brings where it is asked for."""

import json

from benchmarks import compare
from tests.distributed import ROOT
from tests.tiny_run import write_photographs

CONFIG = str(ROOT / "tests" / "tiny_regression.py")


def test_a_row_is_measured_and_trained(tmp_path, capsys):
    train, heldout = (write_photographs(tmp_path / name, seed=seed) for seed, name in enumerate(("train", "heldout")))
    file = tmp_path / "table.json"
    sizes = ["--size=16", "--batch=2", "--repeats=1", "--seconds=0.001", "--per-task=2", f"--output={file}"]
    assert compare.main([f"{CONFIG}:explicit", *sizes, f"--photos={train}", f"--heldout-photos={heldout}"]) == 0
    (row,) = json.loads(file.read_text())
    # One 3x3 convolution of 4 channels on 16 x 16 pixels takes part in the count.
    assert row["GFLOP per megapixel"] > 2 * 9 * 4 * 4 * 1e-3 and row["parameters"] > 188_551
    assert row["images/s"] > 0 < row["images/s, training"] and row["GiB, training"] > 0
    assert row["updates"] == 1 and row["tasks"] == 2 and 0 < row["PSNR, restored"] < 60
    assert "| tiny_regression" in capsys.readouterr().out.replace(str(ROOT / "tests"), "").replace("/", "")


def test_what_cannot_be_compared_is_told(capsys):
    assert compare.main(["configs/nothing.py"]) == 2
    assert "no such configuration" in capsys.readouterr().err
    assert compare.main([str(ROOT / "configs" / "allinone.py") + ":small"]) == 2
    assert "MPerceiver is no restorer by regression" in capsys.readouterr().err
