"""Strictness and exactness of the conversion, whatever the network."""

import ml_dtypes
import numpy as np
import pytest

from mperceiver_jax import convert
from mperceiver_jax.convert.keymaps.registry import LAYOUTS
from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.clip import TextConfig, TextTower, VisionConfig, VisionTower
from mperceiver_jax.models.mperceiver.cm_adapter import CMConfig, CMInversion
from mperceiver_jax.models.mperceiver.predictor import DegradationPredictor, PredictorConfig
from mperceiver_jax.models.mperceiver.vae import AutoencoderKL, VAEConfig

VISION = VisionConfig(image_size=8, patch_size=4, width=8, layers=2, heads=2, embed_width=6)
TEXT = TextConfig(width=8, layers=2, layers_run=1, heads=2, vocabulary=5, context_length=6, projection_width=6)
MODULES = {
    "AutoencoderKL": lambda: AutoencoderKL(VAEConfig(base_channels=8, channel_mult=(1, 2), groups=4)),
    "VisionTower": lambda: VisionTower(VISION),
    "TextTower": lambda: TextTower(TEXT),
    "DegradationPredictor": lambda: DegradationPredictor(PredictorConfig(vision=VISION, hidden=5, classes=3)),
    "CMInversion": lambda: CMInversion(CMConfig(embed_width=6, width=8, tokens=2, heads=2, classes=3)),
}
KNOWN = [(name, layout) for name, layout in LAYOUTS if name in MODULES]


@pytest.mark.parametrize(("name", "layout"), KNOWN)
def test_load_and_dump_are_inverse_and_one_to_one(name, layout):
    module = parameters.initialise(MODULES[name](), seed=3)
    tensors = convert.dump(module, layout)
    assert sum(value.size for value in tensors.values()) == parameters.count(module)
    again = convert.load(MODULES[name](), tensors, layout)
    for path, value in parameters.split(module)[1].items():
        assert np.array_equal(parameters.split(again)[1][path], value), path
    back = convert.dump(again, layout)
    assert list(back) == list(tensors)
    for key, value in tensors.items():
        assert back[key].shape == value.shape and np.array_equal(back[key], value), key


def test_every_problem_is_named_at_once():
    module = parameters.initialise(MODULES["CMInversion"]())
    tensors = convert.dump(module)
    del tensors["attns.1.to_q.weight"]
    tensors["attns.3.to_q.weight"] = np.zeros((8, 8), np.float32)
    tensors["proj.weight"] = tensors["proj.weight"].T
    with pytest.raises(ValueError) as caught:
        convert.load(module, tensors)
    text = str(caught.value)
    assert "1 missing: attns.1.to_q.weight" in text
    assert "1 unexpected: attns.3.to_q.weight" in text
    assert "proj.weight: (6, 16) given, (16, 6) expected" in text
    assert "CMInversion in layout 'release'" in text


def test_a_failed_load_changes_nothing():
    module = parameters.initialise(MODULES["CMInversion"]())
    before = parameters.split(module)[1]
    tensors = {key: value + 1 for key, value in convert.dump(module).items()}
    del tensors["norm.bias"]
    with pytest.raises(ValueError, match=r"norm\.bias"):
        convert.load(module, tensors)
    after = parameters.split(module)[1]
    assert all(np.array_equal(after[path], before[path]) for path in before)


KEY = "attns.0.to_q.weight"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda value: value * np.nan, "holds values that are not finite"),
        (lambda value: value.astype(np.int64), "holds int64; weights are float16, bfloat16, float32 or float64"),
        (lambda value: value > 0, "holds bool"),
        (lambda value: value.astype(np.complex64), "holds complex64"),
        (lambda value: value.astype(ml_dtypes.float8_e4m3fn), "holds float8_e4m3fn"),
        (lambda value: value.astype(np.float64) + 1e300, "too large for float32"),
    ],
)
def test_values_that_no_weight_can_have_are_refused_by_key(change, told):
    module = parameters.initialise(MODULES["CMInversion"]())
    tensors = convert.dump(module)
    with pytest.raises(ValueError, match=rf"{KEY}: {told}"):
        convert.load(module, tensors | {KEY: change(tensors[KEY])})


def test_doubles_become_singles_and_halves_stay():
    module = parameters.initialise(MODULES["CMInversion"]())
    tensors = convert.dump(module)
    for given, kept in ((np.float64, np.float32), (np.float16, np.float16), (ml_dtypes.bfloat16,) * 2):
        loaded = convert.load(MODULES["CMInversion"](), tensors | {KEY: tensors[KEY].astype(given)})
        assert convert.dump(loaded)[KEY].dtype == kept


def test_parts_of_a_stack_are_named_as_the_family_names_them():
    module = parameters.initialise(MODULES["VisionTower"]())
    tensors = convert.dump(module, "transformers")
    assert "vision_model.encoder.layers.1.self_attn.v_proj.weight" in tensors
    del tensors["vision_model.encoder.layers.1.self_attn.v_proj.weight"]
    tensors["vision_model.encoder.layers.0.self_attn.k_proj.bias"] = np.zeros(9, np.float32)
    with pytest.raises(ValueError) as caught:
        convert.load(module, tensors, "transformers")
    assert "1 missing: vision_model.encoder.layers.1.self_attn.v_proj.weight" in str(caught.value)
    assert "layers.0.self_attn.k_proj.bias: (9,) given, (8,) expected" in str(caught.value)


def test_stacks_keep_the_order_query_key_value():
    module = parameters.initialise(MODULES["VisionTower"]())
    stacked = convert.dump(module, "open_clip")["transformer.resblocks.1.attn.in_proj_weight"]
    split = convert.dump(module, "transformers")
    name = "vision_model.encoder.layers.1.self_attn.{}_proj.weight"
    assert np.array_equal(stacked, np.concatenate([split[name.format(part)] for part in "qkv"]))


def test_one_by_one_convolutions_keep_their_axes():
    module = parameters.initialise(MODULES["AutoencoderKL"]())
    assert convert.dump(module, "release")["encoder.mid.attn_1.q.weight"].shape == (16, 16, 1, 1)
    assert convert.dump(module, "diffusers")["encoder.mid_block.attentions.0.to_q.weight"].shape == (16, 16)


def test_ignorable_keys_and_no_others_are_left_out():
    module = parameters.initialise(MODULES["TextTower"]())
    tensors = convert.dump(module, "open_clip") | {"attn_mask": np.zeros((6, 6), np.float32)}
    assert "attn_mask" not in convert.dump(convert.load(module, tensors, "open_clip"), "open_clip")
    with pytest.raises(ValueError, match="unexpected: attn_masks"):
        convert.load(module, tensors | {"attn_masks": tensors["attn_mask"]}, "open_clip")


def test_two_spellings_of_one_key_are_refused():
    module = parameters.initialise(MODULES["TextTower"]())
    tensors = convert.dump(module, "transformers")
    tensors["final_layer_norm.weight"] = tensors["text_model.final_layer_norm.weight"]
    with pytest.raises(ValueError, match=r"both mean text_model\.final_layer_norm\.weight"):
        convert.load(module, tensors, "transformers")


def test_unknown_layouts_and_absent_values_are_named():
    module = MODULES["VisionTower"]()
    with pytest.raises(ValueError, match=r"no layout 'timm'; known: \['open_clip', 'transformers'\]"):
        convert.load(module, {}, "timm")
    with pytest.raises(ValueError, match=r"no value for \['class_embedding'"):
        convert.to_torch(module, {}, "open_clip")


@pytest.mark.parametrize("name", ["autoencoder", "vision", "text"])
def test_published_sizes_are_consumed_whole(name):
    """Names and shapes of the full-size models as their libraries build them, without any values."""
    torch = pytest.importorskip("torch")
    diffusers, transformers = pytest.importorskip("diffusers"), pytest.importorskip("transformers")
    with torch.device("meta"):
        if name == "autoencoder":
            module, layout = AutoencoderKL(VAEConfig.sd()), "diffusers"
            theirs = diffusers.AutoencoderKL(
                down_block_types=["DownEncoderBlock2D"] * 4,
                up_block_types=["UpDecoderBlock2D"] * 4,
                block_out_channels=(128, 256, 512, 512),
                layers_per_block=2,
            )
        elif name == "vision":
            module, layout = VisionTower(VisionConfig.vit_h_14()), "transformers"
            sizes = {"hidden_size": 1280, "intermediate_size": 5120, "patch_size": 14, "image_size": 224}
            theirs = transformers.CLIPVisionModelWithProjection(
                transformers.CLIPVisionConfig(
                    **sizes, projection_dim=1024, num_hidden_layers=32, num_attention_heads=16
                )
            )
        else:
            module, layout = TextTower(TextConfig.sd21()), "transformers"
            sizes = {"hidden_size": 1024, "intermediate_size": 4096, "vocab_size": 49408}
            theirs = transformers.CLIPTextModel(
                transformers.CLIPTextConfig(**sizes, num_hidden_layers=23, num_attention_heads=16)
            )
    state = {key: np.broadcast_to(np.float32(0), value.shape) for key, value in theirs.state_dict().items()}
    state = {key: value for key, value in state.items() if not key.endswith("position_ids")}
    taken = [tensor for found in convert.state_dicts.match(module, state, layout).values() for tensor in found.tensors]
    assert sum(tensor.size for tensor in taken) == sum(value.size for value in state.values())


def test_optional_parameters_may_be_absent_together_but_not_in_halves():
    module = parameters.initialise(MODULES["VisionTower"]())
    tensors = convert.dump(module, "transformers")
    block = "vision_model.encoder.layers.1."
    some = {key: value for key, value in tensors.items() if not key.startswith(block)}
    optional = [r"transformer\.resblocks\.1\."]
    values = convert.from_torch(module, some, "transformers", optional=optional)
    absent = set(parameters.declared(module)) - set(values)
    assert absent and all(path.startswith("transformer.resblocks.1.") for path in absent)
    del some["vision_model.post_layernorm.bias"]
    with pytest.raises(ValueError, match=r"1 missing: vision_model\.post_layernorm\.bias"):
        convert.from_torch(module, some, "transformers", optional=optional)
    del tensors[block + "self_attn.q_proj.bias"]
    with pytest.raises(ValueError, match=r"1 missing: .*q_proj\.bias"):
        convert.from_torch(module, tensors, "transformers", optional=optional)


def test_matching_reads_no_value():
    class Announced:
        def __init__(self, shape):
            self.shape = shape

    module = MODULES["VisionTower"]()
    tensors = {k: Announced(v.shape) for k, v in convert.dump(parameters.initialise(module), "transformers").items()}
    found = convert.state_dicts.match(module, tensors, "transformers", where="predictor.model.")
    assert found.keys() == {f"predictor.model.{path}" for path in parameters.declared(module)}
