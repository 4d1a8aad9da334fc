"""The benchmark commands on the tiny model: what they print and write, and that both UNets are one."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import encode, report, sample, train_step, unet
from benchmarks.flop import flop
from benchmarks.subject import Subject, part_flop, random_values, subject
from benchmarks.timing import PEAK, Candidate, measure
from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.model import MPerceiver
from mperceiver_jax.models.mperceiver.unet import UNet
from tests.support.tiny_model import SIDE, single_scale_config, tiny_config


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """The variants shrunk to the tiny model, one round each."""

    def chosen(variant, *, size=0, batch=0, dtype="", remat=False):
        return Subject(single_scale_config(), size or SIDE, batch or 2, dtype or "float32")

    monkeypatch.setattr(report, "subject", chosen)
    monkeypatch.setattr("benchmarks.timing.measure.__kwdefaults__", {"warm_up": 0})


def test_a_training_step_runs_and_counts_what_the_cache_saves():
    tiny = Subject(single_scale_config(), SIDE, 2, "float32")
    cached, plain = (train_step.step_and_arguments(tiny, cached) for cached in (True, False))
    parts = part_flop(tiny.model, SIDE)
    towers = 2 * (2 * parts["vae_encode"] + parts["clip"])
    assert flop(plain[0], *plain[1]) - flop(cached[0], *cached[1]) == pytest.approx(towers, rel=0.01)
    candidate = train_step.training_step(tiny, cached=True)
    assert [int(candidate.run()[0]) for _ in range(3)] == [1, 2, 3]  # the state goes on
    assert candidate.memory > 0 and candidate.flop == flop(cached[0], *cached[1])


def test_findings_are_printed_and_written(tmp_path, capsys, monkeypatch):
    steps = {False: Candidate(lambda: time.sleep(0.02), 3e6, 2, 2**30), True: Candidate(lambda: None, 2e6, 2)}
    monkeypatch.setattr(train_step, "training_step", lambda chosen, cached: steps[cached])
    monkeypatch.setattr(unet, "candidates", lambda chosen, **given: ({}, ["a warning"]))
    file = tmp_path / "result.json"
    assert train_step.main(["--repeats=1", f"--output={file}"]) == 0
    record, shown = json.loads(file.read_text()), capsys.readouterr().out
    step, peak = record["results"]["training step"], record["results"][PEAK]["flop_per_second"]
    assert step["images_per_second"] == pytest.approx(2 / step["seconds"])
    assert step["share_of_peak"] == pytest.approx(3e6 / step["seconds"] / peak)
    assert record["flop_per_image"]["training step, cached towers"] == 1e6
    assert record["settings"] == {"variant": "small", "size": 16, "batch": 2, "dtype": "float32", "repeats": 1}
    assert record["memory"]["process_bytes"] > 2**20 and record["versions"]["jax"]
    assert "of the peak  1.00 GiB" in shown and "note: a warning" in shown and "vae_encode" in shown


def test_towers_and_samplers_are_measured(capsys):
    assert encode.main(["--repeats=1"]) == 0
    assert "vae encode, a pair in one batch" in capsys.readouterr().out
    assert sample.main(["--repeats=1", "--samplers=dpmpp_2m:2"]) == 0
    assert "dpmpp_2m, 2 steps" in capsys.readouterr().out


def test_the_unet_beside_pytorch_is_the_same_network():
    pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    tiny = Subject(single_scale_config(), SIDE, 2, "float32")
    found, notes = unet.candidates(tiny, compile_too=False)
    assert any("differ by" in note for note in notes)
    assert np.std(found["jax unet forward"].run()) > 0.1
    results = measure(found, repeats=1, warm_up=0)
    ratios = unet.ratios(results)
    assert len(ratios) == 2 and all(np.isfinite(ratio) and ratio > 0 for ratio in ratios.values())


def test_pytorch_is_given_the_precision_that_jax_has(monkeypatch):
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    from benchmarks import torch_unet

    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    told = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", told.append)
    monkeypatch.setattr(torch_unet, "build", {}.__getitem__)  # A KeyError, before there is a need for a GPU.
    module = UNet(replace(single_scale_config().unet, modulated=False))
    with pytest.raises(KeyError):
        torch_unet.TorchUNet(module, "sizes", parameters.initial_values(module, 0), (None,) * 3, "float32")
    assert told == ["high"]


def test_candidates_take_turns():
    order = []
    made = {name: Candidate(lambda name=name: order.append(name)) for name in "ab"}
    results = measure(made, repeats=2, warm_up=1)
    assert order == ["a", "b"] * 3 and len(results["a"]["seconds_all"]) == 2


def test_random_weights_keep_the_variance_and_leave_nothing_at_zero():
    model = MPerceiver(tiny_config())
    values = random_values(model, np.dtype(np.float32))
    for path, leaf in parameters.declared(model).items():
        assert values[path].shape == leaf.get_value().shape
        if leaf.kind != "plain":
            fan_in = np.prod(values[path].shape[:-1])
            assert np.std(values[path]) == pytest.approx(fan_in**-0.5, rel=0.3), path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--size=17"], "--size: a multiple of"), (["--output=/nowhere/x.json"], "there is no folder /nowhere")],
)
def test_mistakes_cost_one_line(arguments, message, capsys):
    assert encode.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_sizes_of_the_variants():
    small, large = subject("small"), subject("sd21", batch=4, remat=True)
    assert (small.size, small.batch, small.compute_dtype) == (48, 16, "float32")
    assert (large.size, large.batch, large.compute_dtype, large.latent) == (512, 4, "bfloat16", (64, 64, 4))
    assert large.model.unet.remat and not small.model.unet.remat
