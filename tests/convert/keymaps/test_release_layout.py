"""The key map of the whole model: the prefixes of a released checkpoint."""

import numpy as np
import pytest

from mperceiver_jax import convert
from mperceiver_jax.checkpoints.model_parts import PARTS
from mperceiver_jax.convert.keymaps import registry
from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.model import MPerceiver, MPerceiverConfig
from tests.support.parity_fixtures import fixture
from tests.support.tiny_model import tiny_config

ADDED = [part.pattern for part in PARTS if not part.needed]

# How many tensors a released checkpoint of full size has behind each prefix.
RELEASED = {
    "model.diffusion_model.": 862,
    "first_stage_model.": 248,
    "cond_stage_model.model.": 294,
    "structcond_stage_model.": 243,
    "classifier.model.": 392,
    "classifier.fc": 4,
    "CM_Inv.": 49,
    "tp": 1,
}


@pytest.fixture(scope="module")
def filled():
    model = MPerceiver(tiny_config())
    values = parameters.initial_values(model, 0, lambda path, value: value)
    parameters.assign(model, values)
    return model, values, convert.dump(model)


def test_load_and_dump_are_inverse(filled):
    model, values, tensors = filled
    assert len(tensors) == len(values)
    again = convert.from_torch(model, tensors)
    assert again.keys() == values.keys()
    assert all(np.array_equal(again[path], value) for path, value in values.items())


def test_full_size_keys_stand_behind_the_prefixes_of_the_release():
    names = registry.keymap(model := MPerceiver(MPerceiverConfig.sd21()), "release")
    keys = [key for path in parameters.declared(model) for key in names.keys(path)]
    assert {prefix: sum(key.startswith(prefix) for key in keys) for prefix in RELEASED} == RELEASED
    rest = [key for key in keys if not key.startswith(tuple(RELEASED))]
    assert rest and all(key.startswith("drm.") for key in rest)
    # The autoencoder's renaming of `resnets` must not reach the UNet, nor the UNet's the autoencoder.
    assert "model.diffusion_model.input_blocks.1.0.in_layers.2.weight" in keys
    assert "first_stage_model.decoder.up.3.block.0.norm1.weight" in keys


def test_keys_are_those_of_the_fixture():
    names = fixture("11_pipeline").state
    found = {".".join(key.split(".")[:2]) for key in names}
    ours = registry.keymap(MPerceiver(tiny_config()), "release")
    beginnings = {".".join(key.split(".")[:2]) for path in parameters.declared(MPerceiver(tiny_config()))
                  for key in ours.keys(path) if not path.startswith("drm.")}  # fmt: skip
    assert beginnings <= found


def test_schedule_buffers_and_the_mask_are_passed_over(filled):
    model, values, tensors = filled
    buffers = [
        "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod",
        "sqrt_recipm1_alphas_cumprod",
        "log_one_minus_alphas_cumprod", "posterior_variance", "posterior_mean_coef1",
        "posterior_log_variance_clipped", "cond_stage_model.model.attn_mask", "logvar",
        "model_ema.diffusion_modelconv_inweight",
    ]  # fmt: skip
    more = tensors | {key: np.zeros(1000, np.float32) for key in buffers}
    assert convert.from_torch(model, more).keys() == values.keys()
    for key in ("alphas", "model.betas", "attn_mask", "sqrt_alphas.weight"):
        with pytest.raises(ValueError, match=f"1 unexpected: {key}"):
            convert.from_torch(model, tensors | {key: np.zeros(1000, np.float32)})


def test_the_inversion_goes_by_two_names(filled):
    model, values, tensors = filled
    renamed = {key.replace("CM_Inv.", "image_proj."): value for key, value in tensors.items()}
    assert "image_proj.attns.2.to_out.0.bias" in renamed
    again = convert.from_torch(model, renamed)
    assert all(np.array_equal(again[path], value) for path, value in values.items())
    with pytest.raises(ValueError, match=r"both mean CM_Inv\."):
        convert.from_torch(model, tensors | renamed)


def test_published_weights_may_lack_what_mperceiver_adds(filled):
    model, values, tensors = filled
    added = ("structcond_stage_model.", "CM_Inv.", "tp", "drm.", "classifier.fc")
    pretrained = {k: v for k, v in tensors.items() if ".spade." not in k and not k.startswith(added)}
    found = convert.from_torch(model, pretrained, optional=ADDED)
    assert len(found) == len(pretrained) < len(values)
    assert {path.split(".")[0] for path in found} == {"unet", "vae", "text_encoder", "predictor"}
    assert all(np.array_equal(value, values[path]) for path, value in found.items())
    with pytest.raises(ValueError, match=r"missing: CM_Inv\.attns"):
        convert.from_torch(model, pretrained)


def test_what_is_not_optional_stays_required(filled):
    model, _, tensors = filled
    missing_parts = {k: v for k, v in tensors.items() if k != "first_stage_model.quant_conv.bias"}
    with pytest.raises(ValueError, match=r"1 missing: first_stage_model\.quant_conv\.bias"):
        convert.from_torch(model, missing_parts, optional=ADDED)
    # An optional tensor that is there must still fit.
    with pytest.raises(ValueError, match=r"tp: \(2, 2\) given, \(3, 2, 16\) expected"):
        convert.from_torch(model, tensors | {"tp": np.zeros((2, 2), np.float32)}, optional=ADDED)
