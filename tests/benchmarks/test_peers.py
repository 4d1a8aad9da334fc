"""The alternatives do what they are for, and the table has a row for each of them and of ours."""

import json
import sys

import numpy as np
import pytest

from benchmarks import alternatives, peers
from mperceiver_jax.evaluate.metrics.full_reference import psnr
from tests.support.finished_run import finished_run

WITH_TORCH = pytest.mark.skipif(sys.version_info >= (3, 12), reason="there is no wheel of torch for this Python")


@pytest.fixture(scope="module")
def tools():
    return {tool.name: tool for tool in alternatives.alternatives()[0]}


@pytest.fixture(scope="module")
def test_cases():
    return peers.cases(96, 4, "heldout")


@pytest.mark.parametrize(
    "tool, task, least",
    [
        ("dark channel", "dehaze", 1.0),
        ("auto levels", "lowlight", 5.0),
        ("median", "desnow", 1.0),
        ("wavelet", "denoise", 2.0),
        ("total variation", "denoise", 2.0),
        ("non-local means", "denoise", 2.0),
        pytest.param("FFDNet", "denoise", 5.0, marks=WITH_TORCH),
    ],
)
def test_a_tool_helps_against_its_degradation(tools, test_cases, tool, task, least):
    chosen = [case for case in test_cases if case.task == task]
    gains = [
        np.mean([psnr(np.clip(run(case.lq), 0, 1), case.gt) - psnr(case.lq, case.gt) for case in chosen])
        for run in tools[tool].settings.values()
    ]
    assert max(gains) > least


def test_settings_are_chosen_by_psnr_for_each_degradation():
    image = np.full((8, 8, 3), 0.5, np.float32)
    dark, bright = peers.Case("dark", image - 0.2, image), peers.Case("bright", image + 0.2, image)
    tool = alternatives.Alternative("shift", {"up": lambda x: x + 0.2, "down": lambda x: x - 0.2, "none": lambda x: x})
    assert peers.best_settings([tool], [dark, bright]) == {("shift", "dark"): "up", ("shift", "bright"): "down"}


def test_the_guided_filter_follows_the_edges_of_the_guide():
    guide = np.zeros((32, 32), np.float32)
    guide[:, 16:] = 1
    noisy = guide + np.float32(0.1) * np.random.default_rng(0).standard_normal((32, 32), np.float32)
    smooth = alternatives.guided_filter(guide, noisy, 9)
    assert abs(smooth - guide).max() < 0.1 < abs(noisy - guide).max()


def test_the_whole_table(tmp_path, capsys):
    finished_run(tmp_path / "run")
    output = tmp_path / "peers.json"
    arguments = [str(tmp_path / "run"), "--sizes=48", "--per-task=1", "--tuned-on=1", f"--output={output}"]
    assert peers.main(arguments) == 0
    rows = json.loads(output.read_text())["48"]["rows"]
    names = [row["name"] for row in rows]
    assert names[:2] == ["degraded", str(tmp_path / "run")] and "dark channel" in names
    assert all(len(row["tasks"]) == 10 and row["seconds"] >= 0 for row in rows)
    printed = capsys.readouterr().out
    assert "48 px" in printed and "lowlight" in printed


def test_what_cannot_be_opened_is_named(tmp_path, capsys):
    assert peers.main([str(tmp_path / "nothing")]) == 2
    assert "nothing" in capsys.readouterr().err
