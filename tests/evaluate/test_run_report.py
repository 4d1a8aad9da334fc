"""The report of a run, laid out from the records of its stages."""

import json

import pytest

from mperceiver_jax.evaluate.run_report import run_results, write_run_report
from mperceiver_jax.models.restorers.am_promptir import AMPromptIRConfig
from tests.support.tiny_experiment import tiny_run
from tests.support.tiny_restorer_run import experiment_of


def record(name: str, scalars: dict, **more) -> dict:
    summary = {"name": name, "steps": 3, "batch_size": 8, "trained_parameters": 10, "seconds": 1.5}
    summary |= {"skipped": 0, "first_loss": 1.0, "last_loss": 0.5}
    return {"scalars": scalars, "summary": summary, **more}


def restoration(name: str, restored: float, lpips_weight: float = 0.0) -> dict:
    side = lambda psnr: {"psnr": psnr, "ssim": 0.5}
    tasks = {task: {"images": 2, "degraded": side(20.0), "restored": side(restored)} for task in ("dehaze", "derain")}
    scalars = {"score": restored, "restored_psnr": restored}
    return record(name, scalars, tasks=tasks, predictor=PREDICTOR, losses={"lpips_weight": lpips_weight})


PREDICTOR = {"accuracy": 0.75, "classes": ["dehaze", "derain"], "confusion": [[2, 0], [1, 1]]}
RECORDS = [
    record("vae", {"score": 30.0, "psnr": 30.0}),
    record("predictor", {"score": 0.75, "accuracy": 0.75}, predictor=PREDICTOR),
    restoration("dual_branch", 22.0),
    restoration("drm", 25.0),
]


def test_the_last_restoring_stage_is_the_result(tmp_path):
    told = write_run_report(tiny_run(), RECORDS, tmp_path)
    assert "2 held-out tasks: degraded 20.00 dB, restored 25.00 dB" in told
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["tasks"]["dehaze"]["restored"]["psnr"] == 25.0
    assert report["predictor"]["accuracy"] == 0.75
    assert report["seconds"] == {"vae": 1.5, "predictor": 1.5, "dual_branch": 1.5, "drm": 1.5}
    notes = " ".join(report["notes"])
    assert "before the detail refinement 22.00 dB, after it 25.00 dB" in notes
    assert "clean held-out images back with 30.00 dB" in notes
    readable = (tmp_path / "report.md").read_text()
    assert "dehaze" in readable and "25.0" in readable


def test_clean_images_are_no_part_of_the_mean(tmp_path):
    last = restoration("drm", 25.0)
    clean = {"images": 2, "degraded": {"psnr": float("inf")}, "restored": {"psnr": 41.0}, "clean": True}
    last["tasks"] = {**last["tasks"], "clean": clean}
    told = write_run_report(tiny_run(), [*RECORDS[:-1], last], tmp_path)
    assert "2 held-out tasks: degraded 20.00 dB, restored 25.00 dB" in told


@pytest.mark.parametrize("count", range(1, 4))
def test_a_run_of_fewer_stages_reports_what_it_has(tmp_path, count):
    results = run_results(tiny_run(), RECORDS[:count])
    assert ("tasks" in results, "predictor" in results) == (count > 2, count > 1)
    assert [stage["name"] for stage in results["stages"]] == ["vae", "predictor", "dual_branch"][:count]
    write_run_report(tiny_run(), RECORDS[:count], tmp_path)
    assert (tmp_path / "report.md").exists()


@pytest.mark.parametrize("weight, said", [(0.1, "with LPIPS (alex, weight 0.1)."), (0.0, "without LPIPS, whose")])
def test_the_report_says_whether_lpips_was_there(weight, said):
    configured = tiny_run({"losses.lpips_weight": 0.1, "losses.lpips_net": "alex"})
    notes = run_results(configured, [*RECORDS[:-1], restoration("drm", 25.0, weight)])["notes"]
    assert any(note.startswith("The detail refinement was trained " + said) for note in notes)


@pytest.mark.parametrize("more", [{}, {"words": "words.npy"}, {"network": AMPromptIRConfig.release()}])
def test_the_report_says_where_words_are_no_embeddings(more):
    network = more.pop("network", AMPromptIRConfig.small())
    experiment = experiment_of("am_promptir", network, "pip", **more)
    notes = run_results(experiment, [record("regression", {"score": 20.0})])["notes"]
    stand_ins = not more and network.text_path == "clip"
    assert any(note.startswith("The words are fixed random vectors") for note in notes) == stand_ins
