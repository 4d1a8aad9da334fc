"""Published weights, in each layout as its library writes it, become pretrained that hold the same numbers."""

import re

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mperceiver_jax import convert
from mperceiver_jax.checkpoints.model_parts import MODULATORS, PARTS
from mperceiver_jax.checkpoints.pretrained import PretrainedDirectory
from mperceiver_jax.convert.formats import torch_files
from mperceiver_jax.convert.importer import converted, import_pretrained
from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.model import MPerceiver
from tests.support import published_weights

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def model():
    return MPerceiver(published_weights.config())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("published")


def imported(sources, output, model, dtype="stored") -> dict[str, np.ndarray]:
    import_pretrained([str(source) for source in sources], output, model, dtype, say=lambda text: None)
    return dict(PretrainedDirectory(output).values())


def equal(given: dict, expected: dict) -> bool:
    return all(np.array_equal(given[path], value) for path, value in expected.items())


@pytest.mark.parametrize("form", ["safetensors", "sharded", "bin", "fp16"])
def test_diffusers_directories(form, model, folder, tmp_path):
    parts = {"unet": published_weights.unet(), "vae": published_weights.vae(), "text_encoder": published_weights.text()}
    options = {"bin": {"safe_serialization": False}, "sharded": {"max_shard_size": "40KB"}, "fp16": {"variant": "fp16"}}
    for name, module in parts.items():
        if form == "bin" and name == "text_encoder":  # transformers no longer writes pickles
            (tmp_path / "sd" / name).mkdir()
            torch.save(module.state_dict(), tmp_path / "sd" / name / "pytorch_model.bin")
            continue
        module.save_pretrained(tmp_path / "sd" / name, **options.get(form, {}))
    assert (len(list((tmp_path / "sd" / "unet").glob("*-of-*"))) > 1) == (form == "sharded")
    values = imported([tmp_path / "sd", published_weights.open_clip_file(folder)], tmp_path / "pretrained", model)
    for module, ours, layout in (
        (parts["unet"], model.unet, "diffusers"),
        (parts["vae"], model.vae, "diffusers"),
    ):
        state = {key: value.numpy() for key, value in module.state_dict().items()}
        where = "unet." if ours is model.unet else "vae."
        found = convert.from_torch(ours, state, layout, optional=[r".*\.spade\."])
        assert len(found) == len(state) and equal(values, {where + path: value for path, value in found.items()})
    # The text encoder comes from the first source that has it, what is never run from the other.
    expected = parts["text_encoder"].state_dict()["final_layer_norm.weight"].numpy()
    assert np.array_equal(values["text_encoder.ln_final.weight"], expected)
    expected = published_weights.open_clip()["transformer.resblocks.1.ln_1.weight"]
    assert np.array_equal(values["text_encoder.transformer.resblocks.1.ln_1.weight"], expected)


@pytest.mark.parametrize("form", ["safetensors", "ckpt"])
def test_single_files_of_compvis(form, model, folder, tmp_path):
    tensors = published_weights.stable_diffusion()
    path = tmp_path / f"v2-1.{form}"
    if form == "safetensors":
        save_file({key: np.asarray(value) for key, value in tensors.items()}, path)
    else:
        published_weights.pickled(path, tensors)
    values = imported([path, published_weights.open_clip_file(folder)], tmp_path / "pretrained", model)
    expected = published_weights.values()
    added = [part.pattern for part in PARTS if not part.needed]
    assert equal(expected, values) and not any(path.startswith(("ir_adapter.", "tp")) for path in values)
    assert len(values) == sum(not any(re.match(pattern, path) for pattern in added) for path in expected)


def test_an_autoencoder_of_compvis_alone_goes_before_another(model, folder, tmp_path):
    start = "first_stage_model."
    tensors = {k.removeprefix(start): v + 1 for k, v in published_weights.release().items() if k.startswith(start)}
    told = []
    finetuned = published_weights.pickled(
        tmp_path / "vae-ft-mse.ckpt", tensors | {"loss.logvar": np.zeros(1, np.float32)}
    )
    sd = published_weights.pickled(tmp_path / "sd.ckpt", published_weights.stable_diffusion())
    sources = [finetuned, sd, published_weights.open_clip_file(folder)]
    import_pretrained(sources, tmp_path / "pretrained", model, say=told.append)
    assert told[:2] == [f"{finetuned}: an autoencoder (CompVis), autoencoder", "  left aside: loss.logvar"]
    values, expected = dict(PretrainedDirectory(tmp_path / "pretrained").values()), published_weights.values()
    assert all(np.array_equal(values[path], expected[path] + 1) for path in values if path.startswith("vae."))
    assert np.array_equal(values["unet.conv_in.weight"], expected["unet.conv_in.weight"])


def test_towers_of_transformers(model, tmp_path):
    save_file(
        {k: np.asarray(v) for k, v in published_weights.stable_diffusion().items() if "cond" not in k},
        tmp_path / "a.safetensors",
    )
    both = published_weights.clip()
    both.save_pretrained(tmp_path / "clip")
    values = imported([tmp_path / "a.safetensors", tmp_path / "clip"], tmp_path / "one", model)
    state = {key: value.numpy() for key, value in both.state_dict().items()}
    expected = {
        f"text_encoder.{p}": v for p, v in convert.from_torch(model.text_encoder, state, "transformers").items()
    }
    expected |= {
        f"predictor.model.{p}": v for p, v in convert.from_torch(model.predictor.model, state, "transformers").items()
    }
    assert "text_encoder.logit_scale" in expected and equal(values, expected)
    # One by one: the image tower nested, the text tower flat, as transformers writes them since 5.6.
    image, flat = published_weights.vision(), published_weights.text()
    image.save_pretrained(tmp_path / "image")
    flat.save_pretrained(tmp_path / "text")
    keys = [key.split(".")[0] for name in ("image", "text") for key in load_file(tmp_path / name / "model.safetensors")]
    assert {"vision_model", "visual_projection", "encoder", "embeddings"} <= set(keys) and "text_model" not in keys
    values = imported([tmp_path / n for n in ("a.safetensors", "image", "text")], tmp_path / "two", model)
    assert np.array_equal(values["predictor.model.proj"], image.state_dict()["visual_projection.weight"].numpy().T)
    assert np.array_equal(values["text_encoder.ln_final.bias"], flat.state_dict()["final_layer_norm.bias"].numpy())
    assert "text_encoder.logit_scale" not in values


@pytest.mark.parametrize("inversion", ["CM_Inv.", "image_proj."])
def test_the_release_with_its_adapters(inversion, model, tmp_path):
    tensors = {key.replace("CM_Inv.", inversion): value for key, value in published_weights.release().items()}
    values = imported([published_weights.pickled(tmp_path / "release.ckpt", tensors)], tmp_path / "pretrained", model)
    expected = published_weights.values()
    assert values.keys() == expected.keys() and equal(values, expected)
    record = PretrainedDirectory(tmp_path / "pretrained").record
    assert record["parameters"] == parameters.count(model)
    (source,) = record["sources"]
    assert len(source["sha256"]["release.ckpt"]) == 64 and any("CC BY-NC-SA" in note for note in source["licence"])


def test_the_predictor_alone_comes_on_top(model, tmp_path):
    save_file({k: np.asarray(v) for k, v in published_weights.stable_diffusion().items()}, tmp_path / "sd.safetensors")
    own = {
        k.removeprefix("classifier."): v for k, v in published_weights.release(9).items() if k.startswith("classifier.")
    }
    sources = [tmp_path / "sd.safetensors", published_weights.pickled(tmp_path / "predictor.pth", own, "")]
    values = imported(sources, tmp_path / "pretrained", model)
    assert equal(
        values, {path: value for path, value in published_weights.values(9).items() if path.startswith("predictor.")}
    )


@pytest.mark.parametrize("container", ["params", "params_ema", "state_dict", ""])
def test_containers_and_prefixes_are_taken_off(container, tmp_path):
    tensors = {"net.a.weight": np.ones((2, 3), np.float32), "net.a.bias": np.zeros(2, np.float32)}
    found = convert.read_torch(published_weights.pickled(tmp_path / "x.pth", tensors, container))
    assert found.keys() == {"a.weight", "a.bias"} and np.array_equal(found["a.weight"], tensors["net.a.weight"])


def test_averages_go_before_what_they_are_averages_of(tmp_path):
    content = {"params": {"a": torch.zeros(1)}, "params_ema": {"a": torch.ones(1)}}
    torch.save(content, tmp_path / "x.pth")
    assert convert.read_torch(tmp_path / "x.pth")["a"] == 1


@pytest.mark.parametrize(("dtype", "stored"), [("bfloat16", "bfloat16"), ("float16", "float16"), ("stored", "float32")])
def test_values_are_rounded_once(dtype, stored, model, tmp_path):
    save_file(
        {key: np.asarray(value) for key, value in published_weights.release().items()}, tmp_path / "all.safetensors"
    )
    values = imported([tmp_path / "all.safetensors"], tmp_path / "pretrained", model, dtype)
    assert {str(value.dtype) for value in values.values()} == {stored}
    exact = published_weights.values()["unet.conv_in.weight"]
    rounded = torch.from_numpy(np.ascontiguousarray(exact)).to(getattr(torch, stored)).float().numpy()
    assert np.array_equal(values["unet.conv_in.weight"].astype(np.float32), rounded)


def test_a_half_present_adapter_is_refused(model, tmp_path):
    tensors = {key: np.asarray(value) for key, value in published_weights.release().items()}
    for lost, told in [
        ("structcond_stage_model.fea_tran.0.in_layers.0.weight", r"1 missing: structcond_stage_model\.fea_tran\.0\."),
        ("tp", r"1 missing: tp\b"),
        ("classifier.fc2.bias", r"1 missing: classifier\.fc2\.bias"),
        ("drm.", r"."),
    ]:
        some = {key: value for key, value in tensors.items() if not key.startswith(lost)}
        save_file(some, tmp_path / "some.safetensors")
        if lost == "drm.":  # A part that is absent as a whole.
            assert imported([tmp_path / "some.safetensors"], tmp_path / "pretrained", model)
            continue
        with pytest.raises(ValueError, match=rf"some\.safetensors looks like .*{told}"):
            import_pretrained([str(tmp_path / "some.safetensors")], tmp_path / "pretrained", model)
        assert not list(tmp_path.glob("pretrained*"))
    without = {k: v for k, v in tensors.items() if not k.startswith(("structcond", "CM_Inv"))}
    save_file(without, tmp_path / "some.safetensors")
    with pytest.raises(ValueError, match=r"missing: CM_Inv\.attns"):
        import_pretrained([str(tmp_path / "some.safetensors")], tmp_path / "none", model)


def test_what_a_full_model_lacks_is_named(model, tmp_path):
    save_file({k: np.asarray(v) for k, v in published_weights.stable_diffusion().items()}, tmp_path / "sd.safetensors")
    with pytest.raises(ValueError, match=r"sd\.safetensors: the image tower is missing; it is in OpenCLIP ViT-H/14"):
        import_pretrained([str(tmp_path / "sd.safetensors")], tmp_path / "pretrained", model)
    assert [path.name for path in tmp_path.iterdir()] == ["sd.safetensors"]


BAD = {
    "foreign": (lambda t: t | {"model.diffusion_model.lora.up": np.zeros(3, np.float32)}, r"unexpected: .*lora\.up"),
    "shape": (
        lambda t: t | {"first_stage_model.quant_conv.bias": np.zeros(9, np.float32)},
        r"quant_conv\.bias: \(9,\) given, \(8,\) expected",
    ),
    "nan": (
        lambda t: t | {"first_stage_model.quant_conv.bias": np.full(8, np.nan, np.float32)},
        r"first_stage_model\.quant_conv\.bias: holds values that are not finite",
    ),
    "integers": (
        lambda t: t | {"first_stage_model.quant_conv.bias": np.zeros(8, np.int64)},
        r"quant_conv\.bias: holds int64",
    ),
    "too large": (
        lambda t: t | {"first_stage_model.quant_conv.bias": np.full(8, 1e6, np.float32)},
        r"quant_conv\.bias: too large for float16",
    ),
    "too large in bfloat16": (
        lambda t: t | {"first_stage_model.quant_conv.bias": np.full(8, 1e6, ml_dtypes.bfloat16)},
        r"quant_conv\.bias: too large for float16",
    ),
    "of nobody": (lambda t: {"layer.0.weight": np.zeros(3, np.float32)}, r"keys of no known layout \(layer\.0\.weight"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_by_key_and_nothing_is_written(case, model, tmp_path):
    change, told = BAD[case]
    tensors = change({key: np.asarray(value) for key, value in published_weights.release().items()})
    save_file(tensors, tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match=rf"bad\.safetensors.*{told}"):
        import_pretrained(
            [str(tmp_path / "bad.safetensors")], tmp_path / "pretrained", model, "float16", say=lambda text: None
        )
    assert [path.name for path in tmp_path.iterdir()] == ["bad.safetensors"]


def test_an_existing_directory_is_not_overwritten(model, tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(FileExistsError, match="exists already"):
        import_pretrained(["absent.safetensors"], tmp_path, model)


def test_modulators_belong_to_the_dual_branch():
    path = "unet.down_blocks.0.resnets.0.spade.mlp_gamma.weight"
    assert re.match(MODULATORS, path)
    assert next(part.title for part in PARTS if re.match(part.pattern, path)).startswith("dual")


def test_converted_rounds_float64_to_float32(tmp_path):
    published_weights.pickled(tmp_path / "x.pt", {"norm.weight": np.arange(4.0)}, "")
    tensors = torch_files.open_tensors(tmp_path / "x.pt")
    found = convert.state_dicts.Found(("norm.weight",), (tensors["norm.weight"],), "plain")
    assert converted(found, None).dtype == np.float32


def test_keys_are_told_as_their_file_has_them(model, tmp_path):
    save_file({k: np.asarray(v) for k, v in published_weights.stable_diffusion().items()}, tmp_path / "sd.safetensors")
    towers = {key: np.asarray(value) for key, value in published_weights.open_clip().items()}
    both = {key: value.numpy() for key, value in published_weights.clip().state_dict().items()}
    query = "vision_model.encoder.layers.0.self_attn.q_proj.weight"
    release = {key.replace("CM_Inv.", "image_proj."): np.asarray(v) for key, v in published_weights.release().items()}
    for tensors, told in [
        (towers | {"visual.foo": np.zeros(3, np.float32)}, r"unexpected: visual\.foo"),
        (towers | {"visual.proj": np.zeros((3, 3), np.float32)}, r"visual\.proj: \(3, 3\) given"),
        ({key: value for key, value in towers.items() if key != "visual.proj"}, r"missing: visual\.proj"),
        (towers | {"visual.proj": towers["visual.proj"] * np.inf}, r"visual\.proj: holds values that are not finite"),
        (both | {query: both[query].astype(np.int64)}, rf"{query}: holds int64"),
        (both | {query: both[query] * np.nan}, rf"{query}: holds values that are not finite"),
        (release | {"image_proj.norm.bias": np.zeros(3, np.float32)}, r"image_proj\.norm\.bias: \(3,\) given"),
    ]:
        save_file({key: np.array(value, order="C") for key, value in tensors.items()}, tmp_path / "bad.safetensors")
        sources = [str(tmp_path / "sd.safetensors"), str(tmp_path / "bad.safetensors")]
        with pytest.raises(ValueError, match=rf"bad\.safetensors.*{told}"):
            import_pretrained(sources, tmp_path / "pretrained", model, say=lambda text: None)
        assert not list(tmp_path.glob("pretrained*"))


def test_parts_of_a_stack_may_differ_in_type(model, tmp_path):
    state = published_weights.vision().state_dict()
    for name, dtype in (("q_proj", torch.float16), ("k_proj", torch.bfloat16)):
        state = {key: value.to(dtype) if name in key else value for key, value in state.items()}
    torch.save(state, tmp_path / "vision.bin")
    tensors = torch_files.open_tensors(tmp_path / "vision.bin")
    found = convert.state_dicts.match(model.predictor.model, tensors, "transformers")
    value = converted(found["transformer.resblocks.0.attn.in_proj_weight"], None)
    assert value.dtype == np.float32 and value.flags.c_contiguous
    parts = [state[f"vision_model.encoder.layers.0.self_attn.{name}_proj.weight"].float().numpy().T for name in "qkv"]
    assert np.array_equal(value, np.concatenate(parts, -1))
