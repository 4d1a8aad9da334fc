"""The commands `import` and `inspect`, as their users see them."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from mperceiver_jax.checkpoints.pretrained import PretrainedDirectory
from mperceiver_jax.convert.__main__ import main
from tests.support import published_weights

torch = pytest.importorskip("torch")
save_tensors = pytest.importorskip("safetensors.torch").save_file

CONFIG = f"--config={published_weights.__file__}"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(Stable Diffusion's file, OpenCLIP's, the release's)."""
    folder = tmp_path_factory.mktemp("files")
    for name, tensors in (("sd", published_weights.stable_diffusion()), ("release", published_weights.release())):
        save_file({key: np.asarray(value) for key, value in tensors.items()}, folder / f"{name}.safetensors")
    return str(folder / "sd.safetensors"), published_weights.open_clip_file(folder), str(folder / "release.safetensors")


def test_import_writes_a_directory_and_says_what_it_is(files, tmp_path, capsys):
    sd, open_clip, _ = files
    output = tmp_path / "pretrained"
    assert main(["import", sd, open_clip, f"--output={output}", "--dtype=bfloat16", CONFIG]) == 0
    told = capsys.readouterr().out
    assert "sd.safetensors: a Stable Diffusion checkpoint (CompVis), UNet, autoencoder, text tower" in told
    assert "open_clip_model.safetensors: an OpenCLIP model, image tower" in told
    assert "left aside: betas, cond_stage_model.model.attn_mask, logvar, model_ema.decay" in told
    assert "licence of the weights: CreativeML Open RAIL++-M" in told and f"--config.pretrained={output}" in told
    directory = PretrainedDirectory(output)
    assert {str(value.dtype) for _, value in directory.values()} == {"bfloat16"}
    assert sorted(path.name for path in output.iterdir()) == ["record.json", "values"]
    assert main(["inspect", str(output), CONFIG]) == 0
    told = capsys.readouterr().out
    assert "pretrained in our layout" in told and "sha256" in told and "All that training needs is there." in told
    assert main(["import", sd, open_clip, f"--output={output}", CONFIG]) == 1
    assert "exists already" in capsys.readouterr().err


def test_inspect_says_what_a_file_is_and_what_is_missing(files, capsys):
    sd, open_clip, release = files
    assert main(["inspect", sd, CONFIG]) == 0
    told = capsys.readouterr().out
    count = sum(
        np.size(v) for k, v in published_weights.stable_diffusion().items() if k.startswith("model.diffusion_model.")
    )
    assert "layout: a Stable Diffusion checkpoint (CompVis)" in told and "UNet: " in told
    assert f"{count:,} float32" in told
    assert "the image tower is missing; it is in OpenCLIP ViT-H/14" in told
    assert "left aside: betas, cond_stage_model.model.attn_mask, logvar, model_ema.decay" in told
    assert "not there, and not needed to begin: dual branch" in told
    assert main(["inspect", sd, open_clip, CONFIG]) == 0
    assert "All that training needs is there." in capsys.readouterr().out
    assert main(["inspect", release, CONFIG]) == 0
    told = capsys.readouterr().out
    assert "dual branch (modulators" in told and "not needed to begin" not in told


def test_failures_are_one_line(files, tmp_path, capsys):
    sd, _, _ = files
    (tmp_path / "bad.ckpt").write_bytes(b"no checkpoint")
    save_file({"a.weight": np.zeros(3)}, tmp_path / "foreign.safetensors")
    for arguments, told in [
        (["import", sd], "the image tower is missing"),
        (["import", str(tmp_path / "bad.ckpt")], "bad.ckpt: damaged"),
        (["import", "absent/nowhere.safetensors"], "no such file or directory"),
        (["inspect", str(tmp_path / "foreign.safetensors")], "not usable"),
    ]:
        more = [f"--output={tmp_path / 'pretrained'}"] if arguments[0] == "import" else []
        assert main([*arguments, *more, CONFIG]) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"{arguments[0]}: ") and told in error and error.count("\n") == 1
    assert not (tmp_path / "pretrained").exists()
    # Against the published sizes a small model is recognised, and refused by its shapes.
    assert main(["inspect", sd]) == 1
    shown = capsys.readouterr()
    assert "  UNet: " in shown.out and "sd.safetensors looks like" in shown.err and "of another shape" in shown.err


def test_inspect_of_pretrained_weights_of_another_model_or_damaged(files, tmp_path, capsys):
    output = tmp_path / "pretrained"
    assert main(["import", *files[:2], f"--output={output}", CONFIG]) == 0
    capsys.readouterr()
    assert main(["inspect", str(output)]) == 1  # Against the published sizes.
    shown = capsys.readouterr()
    assert "pretrained: its parameters are not those of the model" in shown.err and shown.err.count("\n") == 1
    assert "All that training needs" not in shown.out
    for values in ("3", '{"tp": 3}', '{"tp": ["../x", "float32", [1]]}'):
        text = f'{{"format": 1, "parameters": 1, "sources": [], "values": {values}}}'
        (output / "record.json").write_text(text)
        for arguments in (["inspect", str(output)], ["export", str(output), "--format=diffusers", "--output=x"]):
            assert main([*arguments, CONFIG]) == 1
            assert "record.json is damaged" in capsys.readouterr().err


def test_inspect_says_why_a_file_is_of_no_use(tmp_path, capsys):
    tensors = {key: np.asarray(value) for key, value in published_weights.release().items() if key != "tp"}
    save_file(tensors, tmp_path / "half.safetensors")
    assert main(["inspect", str(tmp_path / "half.safetensors"), CONFIG]) == 1
    error = capsys.readouterr().err
    assert "half.safetensors looks like" in error and "missing: tp" in error and error.count("\n") == 1


def test_inspect_describes_what_it_can_before_it_tells_of_the_rest(files, capsys):
    assert main(["inspect", "absent.ckpt", "owner/", files[1], CONFIG]) == 1
    shown = capsys.readouterr()
    assert "an OpenCLIP model" in shown.out and "absent.ckpt: no such" in shown.err and "owner/: no such" in shown.err


def test_inspect_refuses_the_types_that_import_refuses(tmp_path, capsys):
    key, path = "first_stage_model.quant_conv.bias", tmp_path / "typed.safetensors"
    for dtype, told in (("int64", "int64"), ("bool", "bool"), ("complex64", "C64"), ("float8_e4m3fn", "F8_E4M3")):
        tensors = {name: torch.from_numpy(np.array(value)) for name, value in published_weights.release().items()}
        save_tensors(tensors | {key: tensors[key].to(getattr(torch, dtype))}, path)
        for arguments in (["inspect", str(path)], ["import", str(path), f"--output={tmp_path / 'pretrained'}"]):
            assert main([*arguments, CONFIG]) == 1
            error = capsys.readouterr().err
            assert f"1 of another type: {key}: holds {told}; weights are" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("def (", "invalid syntax"),
        ("get_config = lambda: 3", "no ConfigDict with a model"),
        ("from ml_collections import ConfigDict as get_config", "no ConfigDict with a model"),
        ("def get_config(): return {}['model']", "model (KeyError)"),
        ("", "has no get_config"),
    ],
)
def test_broken_config_files_are_told_in_one_line(text, told, tmp_path, capsys):
    (tmp_path / "bad.py").write_text(text)
    assert main(["inspect", "x.safetensors", f"--config={tmp_path / 'bad.py'}"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("inspect: --config=") and told in error and error.count("\n") == 1


@pytest.mark.parametrize("command", ["import", "inspect"])
def test_help_teaches(command, capsys):
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert f"python -m mperceiver_jax.convert {command}" in text and "open_clip_model.safetensors" in text
