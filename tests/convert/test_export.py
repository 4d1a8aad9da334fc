"""Exported files: what the release, diffusers and transformers load, and exactly what came in."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from mperceiver_jax import convert
from mperceiver_jax.convert.export import export
from mperceiver_jax.convert.keymaps import registry
from mperceiver_jax.convert.schedule_tables import schedule_tables
from mperceiver_jax.diffusion.schedule import Schedule
from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.clip import TextConfig, VisionConfig
from mperceiver_jax.models.mperceiver.cm_adapter import CMConfig
from mperceiver_jax.models.mperceiver.drm import DRMConfig
from mperceiver_jax.models.mperceiver.ir_adapter import IRAdapterConfig
from mperceiver_jax.models.mperceiver.model import MPerceiver, MPerceiverConfig
from mperceiver_jax.models.mperceiver.predictor import PredictorConfig
from mperceiver_jax.models.mperceiver.unet import UNetConfig
from mperceiver_jax.models.mperceiver.vae import VAEConfig
from tests.support.parity_fixtures import fixture, nchw, nhwc
from tests.support.tiny_model import tiny_config

LIBRARY_FOLDERS = ("unet", "vae", "text_encoder", "image_encoder")


def random_values(model: MPerceiver, seed: int = 0) -> dict[str, np.ndarray]:
    """Nothing at zero or one, so that every number must be in its place."""
    rng = np.random.default_rng(seed)
    variables = parameters.declared(model)
    draw = lambda shape: np.asarray(rng.standard_normal(shape, np.float32) * np.float32(0.1) + np.float32(0.05))
    return {path: draw(variable.get_value().shape) for path, variable in variables.items()}


@pytest.fixture(scope="module")
def model():
    return MPerceiver(tiny_config())


@pytest.fixture(scope="module")
def values(model):
    return random_values(model)


@pytest.fixture(scope="module")
def diffusers_folder(model, values, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "exported"
    assert export(model, values, folder, "diffusers") == [folder]
    return folder


def same(found, expected) -> None:
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        assert found[path].dtype == value.dtype and np.array_equal(found[path], value), path


def test_release_has_exactly_the_keys_and_shapes_of_a_checkpoint_of_the_release(tmp_path):
    """The fixture lists the whole model object of the release with small parts, apart from its schedule tables."""
    facts = fixture("11_pipeline").description["state"]
    model = MPerceiver(fixture_config())
    path = tmp_path / "release.safetensors"
    export(model, random_values(model), path)
    found = {key: list(value.shape) for key, value in load_file(path).items()}
    expected = {key: shape for key, shape, *_ in facts["list"]} | {key: [1000] for key in facts["keys_left_out"]}
    assert found == expected


def fixture_config() -> MPerceiverConfig:
    return MPerceiverConfig(
        unet=UNetConfig(
            model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_levels=(0,), head_width=16,
            context_width=32, feature_channels=32,
        ),
        vae=VAEConfig(base_channels=32, channel_mult=(1, 1, 2), num_res_blocks=1),
        text=TextConfig(width=32, layers=3, layers_run=2, heads=2, vocabulary=16, projection_width=32),
        predictor=PredictorConfig(VisionConfig(28, 14, 32, 2, 2, 32), hidden=24),
        adapter=IRAdapterConfig(
            model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_levels=(0,), heads=2, out_channels=32
        ),
        cm=CMConfig(embed_width=32, width=32, heads=8),
        drm=DRMConfig(channels=(32, 32), width=8, blocks=(1, 1)),
    )  # fmt: skip


def test_schedule_tables_are_those_of_the_release():
    facts = fixture("08_sampler")
    for name, table in schedule_tables(Schedule()).items():
        facts.check(f"buffer.{name}", table)


def test_release_and_its_refinement_come_back_bit_for_bit(model, values, tmp_path):
    path = tmp_path / "release.safetensors"
    beside = tmp_path / "release.drm.safetensors"
    assert export(model, values, path) == [path, beside]
    refinement = convert.read_torch(beside)
    assert all(key.startswith("drm.") for key in refinement)
    same(convert.from_torch(model, convert.read_torch(path) | refinement), values)
    assert sorted(file.name for file in tmp_path.iterdir()) == [beside.name, path.name]


def test_one_file_comes_back_bit_for_bit(model, values, tmp_path):
    path = tmp_path / "all.safetensors"
    assert export(model, values, path, "safetensors") == [path]
    same(convert.from_torch(model, convert.read_torch(path)), values)


def test_diffusers_directories_and_adapters_hold_every_parameter_once(model, values, diffusers_folder):
    library_components = {"unet": model.unet, "vae": model.vae, "text_encoder": model.text_encoder}
    library_components["image_encoder"] = model.predictor.model
    found = {}
    for name, module in library_components.items():
        root = "predictor.model." if name == "image_encoder" else f"{name}."
        (file,) = (diffusers_folder / name).glob("*.safetensors")
        layout = "diffusers" if name in ("unet", "vae") else "transformers"
        found |= read_some(module, convert.read_torch(file), layout, root)
    adapters = convert.read_torch(diffusers_folder / "adapters.safetensors")
    more = read_some(model, adapters, "release", "")
    assert not found.keys() & more.keys()
    same(found | more, values)


def read_some(module, tensors, layout, root):
    """The parameters of a module whose keys are there."""
    names = registry.keymap(module, layout)
    whole = dict(tensors)
    there = {path for path in parameters.declared(module) if set(names.keys(path)) <= tensors.keys()}
    for path, variable in parameters.declared(module).items():
        if path not in there:
            hollow = np.broadcast_to(np.float32(0), variable.get_value().shape)
            whole |= convert.state_dicts.theirs(names, path, variable.kind, hollow)
    values = convert.from_torch(module, whole, layout)
    return {root + path: value for path, value in values.items() if path in there}


def test_adapters_are_described(model, diffusers_folder):
    notes = json.loads((diffusers_folder / "adapters.json").read_text())
    tensors = load_file(diffusers_folder / "adapters.safetensors")
    assert {key: entry["shape"] for key, entry in notes["tensors"].items()} == {
        key: list(value.shape) for key, value in tensors.items()
    }
    assert all(entry["meaning"] and entry["part"] in notes["parts"] for entry in notes["tensors"].values())
    spade = notes["tensors"]["model.diffusion_model.input_blocks.1.0.spade.mlp_gamma.weight"]
    assert spade["module"] == "down_blocks.0.resnets.0" and "gamma" in spade["meaning"]
    modules = {key.rpartition(".conv1.")[0] for key in load_file(
        diffusers_folder / "unet" / "diffusion_pytorch_model.safetensors") if ".conv1." in key}  # fmt: skip
    assert {entry["module"] for entry in notes["tensors"].values() if "module" in entry} == modules
    assert "n * (1 + gamma) + beta" in notes["parts"]["modulator"]


def test_diffusers_computes_what_we_do(model, values, diffusers_folder):
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    rng = np.random.default_rng(1)
    draw = lambda *shape: rng.standard_normal(shape, np.float32)
    structure, _ = parameters.split(model)
    ours = lambda call: np.asarray(jax.jit(lambda p: call(parameters.merge(structure, p)))(values))

    def theirs(cls, name):
        loaded, report = cls.from_pretrained(diffusers_folder / name, output_loading_info=True, use_safetensors=True)
        assert not any(report.values()), report
        return loaded.eval()

    unet, vae = theirs(diffusers.UNet2DConditionModel, "unet"), theirs(diffusers.AutoencoderKL, "vae")
    z, context, image = draw(2, 8, 12, 4), draw(2, 5, 16), draw(1, 16, 16, 3)
    tensor = lambda x: torch.from_numpy(nchw(x))
    with torch.no_grad():
        noise = nhwc(unet(tensor(z), torch.tensor([7, 900]), torch.from_numpy(context)).sample.numpy())
        mean = nhwc(vae.encode(tensor(image)).latent_dist.mean.numpy())
        decoded = nhwc(vae.decode(tensor(z)).sample.numpy())
    assert relative(ours(lambda m: m.unet(z, np.array([7, 900]), context)), noise) < 1e-4
    assert relative(ours(lambda m: m.vae.encode(image).mean), mean) < 1e-4
    assert relative(ours(lambda m: m.vae.decode(z)), decoded) < 1e-4
    assert vae.config.scaling_factor == model.config.vae.scaling_factor


def test_diffusers_samples_at_our_timesteps(diffusers_folder, tmp_path):
    pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler.from_pretrained(diffusers_folder / "scheduler")
    scheduler.set_timesteps(50)
    assert list(scheduler.timesteps) == list(range(981, 0, -20))
    assert np.allclose(scheduler.alphas_cumprod, Schedule().alphas_cumprod, rtol=1e-4)
    assert (scheduler.final_alpha_cumprod, scheduler.config.prediction_type) == (1, "epsilon")
    turned = MPerceiver(replace(tiny_config(), prediction="v_prediction"))
    export(turned, {"tp": random_values(turned)["tp"]}, tmp_path / "v", "diffusers")
    assert (
        diffusers.DDIMScheduler.from_pretrained(tmp_path / "v" / "scheduler").config.prediction_type == "v_prediction"
    )


def test_transformers_computes_what_we_do(model, values, diffusers_folder):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    structure, _ = parameters.split(model)
    ours = lambda call: np.asarray(jax.jit(lambda p: call(parameters.merge(structure, p)))(values))

    def theirs(cls, name):
        loaded, report = cls.from_pretrained(diffusers_folder / name, output_loading_info=True)
        assert not any(report.values()), report
        return loaded.eval()

    text = theirs(transformers.CLIPTextModel, "text_encoder")
    vision = theirs(transformers.CLIPVisionModelWithProjection, "image_encoder")
    ids = np.array([[2, 0, 1, 3, 0, 0, 0, 0]], np.int32)
    image = np.random.default_rng(2).standard_normal((2, 8, 8, 3), np.float32)
    with torch.no_grad():
        states = text(torch.from_numpy(ids).long()).last_hidden_state.numpy()
        embedding = vision(torch.from_numpy(nchw(image))).image_embeds.numpy()
    assert relative(ours(lambda m: m.text_encoder.encode(ids)), states) < 1e-4
    assert relative(ours(lambda m: m.predictor.model(image)), embedding) < 1e-4


def relative(found, expected) -> float:
    assert found.shape == expected.shape and expected.std() > 1e-3
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_halves_are_rounded_to_the_nearest(model, values, dtype, tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file as load_tensors

    path = tmp_path / "half.safetensors"
    export(model, values, path, "release", dtype)
    found = load_tensors(path)
    for key, value in convert.to_torch(model, values).items():
        if not key.startswith("drm."):
            assert torch.equal(found[key], torch.from_numpy(value).to(getattr(torch, dtype))), key
    assert found["alphas_cumprod"].dtype == torch.float32  # A schedule in halves would be another one.


def test_what_does_not_fit_the_dtype_is_named_and_nothing_is_written(model, values, tmp_path):
    bad = values | {"unet.conv_out.bias": values["unet.conv_out.bias"] + np.float32(7e4)}
    for form, name in (("release", "a.safetensors"), ("safetensors", "b.safetensors"), ("diffusers", "c")):
        with pytest.raises(ValueError, match=r"conv_out\.bias|out\.2\.bias") as caught:
            export(model, bad, tmp_path / name, form, "float16")
        assert "7000" in str(caught.value) and "float16" in str(caught.value)
    export(model, bad, tmp_path / "fits.safetensors", "safetensors", "bfloat16")
    bad["tp"] = values["tp"] * np.float32(np.nan)
    with pytest.raises(ValueError, match=r"^tp: holds values that are not finite"):
        export(model, bad, tmp_path / "d.safetensors")
    assert [file.name for file in tmp_path.iterdir()] == ["fits.safetensors"]


def test_what_is_there_is_never_replaced(model, values, tmp_path):
    path = tmp_path / "mine.safetensors"
    path.write_text("dear")
    for form in ("release", "safetensors", "diffusers"):
        with pytest.raises(FileExistsError, match=r"mine\.safetensors exists already"):
            export(model, values, path, form)
    assert path.read_text() == "dear"


def test_pretrained_weights_alone_are_no_release_but_directories(model, values, tmp_path):
    added = ("ir_adapter.", "cm_inv.", "tp", "drm.", "predictor.fc")
    pretrained = {path: value for path, value in values.items() if not path.startswith(added) and ".spade." not in path}
    with pytest.raises(ValueError, match=r"pretrained\.safetensors would be incomplete: .*cm_inv.*--format=diffusers"):
        export(model, pretrained, tmp_path / "pretrained.safetensors")
    export(model, pretrained, tmp_path / "folder", "diffusers")
    assert all((tmp_path / "folder" / name / "config.json").exists() for name in LIBRARY_FOLDERS)
    del pretrained["unet.conv_in.bias"]
    with pytest.raises(ValueError, match=r"no values of unet\.conv_in\.bias \(1 of"):
        export(model, pretrained, tmp_path / "half", "diffusers")
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]
