"""The assembly, against the release's whole model and against the sizes of the specification."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mperceiver_jax import convert
from mperceiver_jax.diffusion.samplers import DDIM, sample
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
from mperceiver_jax.training.stages.registry import build_stage
from tests.support.parity_fixtures import fixture, nchw, nhwc
from tests.support.tiny_model import tiny_config, tiny_experiment


def as_released() -> MPerceiverConfig:
    """The sizes of the fixture of the whole model."""
    return MPerceiverConfig(
        unet=UNetConfig(
            model_channels=32,
            channel_mult=(1, 2),
            num_res_blocks=1,
            attention_levels=(0,),
            head_width=16,
            context_width=32,
            feature_channels=32,
        ),
        vae=VAEConfig(base_channels=32, channel_mult=(1, 1, 2), num_res_blocks=1),
        text=TextConfig(
            width=32,
            layers=3,
            layers_run=2,
            heads=2,
            vocabulary=16,
            projection_width=32,
            sot_id=14,
            eot_id=15,
        ),
        predictor=PredictorConfig(
            vision=VisionConfig(image_size=28, patch_size=14, width=32, layers=2, heads=2, embed_width=32),
            hidden=24,
        ),
        adapter=IRAdapterConfig(
            model_channels=32,
            channel_mult=(1, 2),
            num_res_blocks=1,
            attention_levels=(0,),
            heads=2,
            out_channels=32,
        ),
        cm=CMConfig(embed_width=32, width=32),
        drm=DRMConfig(channels=(32, 32), width=8, blocks=(1, 1)),
    )


@pytest.fixture(scope="module")
def released():
    """(fixture, structure, values): the release's weights; what it lacks, the refinement, is at its start."""
    facts = fixture("11_pipeline")
    model = MPerceiver(as_released())
    values = convert.from_torch(model, facts.state, layout="release", optional=[r"drm\."])
    start = parameters.initial_values(model, 0, lambda path, value: value)
    assert {path.split(".")[0] for path in start.keys() - values.keys()} == {"drm"}
    return facts, parameters.split(model)[0], start | values


def test_every_output_equals_the_release(released):
    facts, structure, values = released
    images = {name: nhwc(facts.inputs[name]) for name in ("lq", "gt", "lq_clip", "noise", "x_T")}
    schedule = Schedule()

    @jax.jit
    def outputs(values, images, t):
        model = parameters.merge(structure, values)
        condition = model.condition(images["lq"], images["lq_clip"])
        embedding, _ = model.perceive(images["lq_clip"])
        z_gt, _ = model.encode(images["gt"])
        features = model.ir_adapter(condition.z_lq, t, condition.logits)
        x_t = schedule.add_noise(z_gt, images["noise"], t)
        eps = model.predict(x_t, t, condition)
        return {
            "embedding": embedding,
            "logits": condition.logits,
            "class_tokens": model.cm_inv(embedding),
            "context": condition.context,
            "z_lq": condition.z_lq,
            "z_gt": z_gt,
            "feature.8": features[0],
            "feature.4": features[1],
            "x_t": x_t,
            "eps": eps,
            "loss": jnp.square(eps - images["noise"]).mean()[None],
        }

    @jax.jit
    def sampled(values, images):
        model = parameters.merge(structure, values)
        condition = model.condition(images["lq"], images["lq_clip"])
        prompts = model.ir_adapter.prompts()
        denoise = lambda x, t: model.predict(x, t, condition, prompts)
        sampler = DDIM(schedule, steps=5, mode="reference")
        latent, path = sample(sampler, denoise, images["x_T"], return_trajectory=True)
        refined = model.decode(latent, images["lq"], condition.taps, condition.logits)
        return latent, path["x"], model.decode(latent), refined

    found = outputs(values, images, facts.inputs["timesteps"])
    latent, trajectory, image, refined = sampled(values, images)
    for name, value in found.items():
        facts.check(name, value)
    facts.check("latent", latent)
    facts.check("trajectory", np.stack([nchw(np.asarray(x)) for x in trajectory]))
    facts.check("image", image)
    facts.check("image", refined)
    assert found.keys() | {"latent", "trajectory", "image"} == facts.outputs.keys()


def test_dump_gives_the_release_back_and_the_refinement(released):
    facts, _, values = released
    tensors = convert.to_torch(MPerceiver(as_released()), values, layout="release")
    assert {key for key in tensors if not key.startswith("drm.")} == facts.state.keys()
    assert all(np.array_equal(tensors[key], value) for key, value in facts.state.items())
    again = convert.load(MPerceiver(as_released()), tensors, layout="release")
    assert all(np.array_equal(value, values[path]) for path, value in parameters.split(again)[1].items())


def test_a_refinement_at_its_start_changes_nothing(released):
    _, structure, values = released
    rng = np.random.default_rng(0)
    z, lq = (rng.standard_normal(shape, np.float32) for shape in ((1, 8, 8, 4), (1, 32, 32, 3)))
    logits = 5 * rng.standard_normal((1, 9), np.float32)

    @jax.jit
    def decoded(values):
        model = parameters.merge(structure, values)
        _, taps = model.encode(lq)
        return model.decode(z), model.decode(z, lq, taps, logits)

    plain, refined = decoded(values)
    assert np.array_equal(plain, refined) and np.abs(plain).max() > 0.1
    plain, refined = decoded(values | {"drm.residual.bias": np.ones(12, np.float32)})
    assert np.abs(plain - refined).max() > 1e-3


def test_a_refinement_needs_the_logits():
    model = MPerceiver(tiny_config())
    with pytest.raises(ValueError, match="logits"):
        model.decode(np.zeros((1, 8, 8, 4), np.float32), np.zeros((1, 16, 16, 3), np.float32))


def test_full_size_counts():
    model = MPerceiver(MPerceiverConfig.sd21())
    sizes = {path: int(np.prod(v.get_value().shape)) for path, v in parameters.declared(model).items()}

    def found(pattern: str) -> tuple[int, int]:
        chosen = [size for path, size in sizes.items() if re.match(pattern, path)]
        return sum(chosen), len(chosen)

    assert found(r"unet\.(?!.*\.spade\.)") == (865_910_724, 686)
    assert found(r"unet\..*\.spade\.") == (59_508_224, 176)
    assert found(r"ir_adapter\.") == (53_937_152, 243)
    assert found(r"ir_adapter\.time_embedding\.")[0] == 328_704
    assert found(r"ir_adapter\.input_blocks\.")[0] == 21_938_432
    assert found(r"ir_adapter\.middle_block\.")[0] == 11_020_288
    assert found(r"ir_adapter\.visual_prompt$") == (442_368, 1)
    assert found(r"ir_adapter\.prompt_attns\.")[0] == 3_409_152
    assert found(r"ir_adapter\.norm1\.")[0] == 2_560 and found(r"ir_adapter\.norm2\.")[0] == 4_096
    assert found(r"ir_adapter\.fea_tran\.")[0] == 16_791_552
    assert found(r"cm_inv\.") == (54_553_600, 49)
    assert found(r"tp$") == (147_456, 1)
    assert found(r"predictor\.fc[12]\.") == (529_417, 4)
    assert found(r"predictor\.model\.") == (632_076_800, 392)
    assert found(r"vae\.") == (83_653_863, 248)
    assert found(r"vae\.encoder\.")[0] == 34_163_592 and found(r"vae\.decoder\.")[0] == 49_490_179
    assert found(r"vae\.(post_)?quant_conv\.")[0] == 92
    assert found(r"text_encoder\.") == (354_032_641, 294)
    run = r"text_encoder\.(token_embedding|positional_embedding|ln_final|transformer\.resblocks\.(?!23\.))"
    assert found(run)[0] == 340_387_840
    assert found(r"drm\.")[0] == 21_710_736


@pytest.mark.parametrize(
    ("stage", "losses", "expected"),
    [
        ("dual_branch", {}, (168_146_432, 469)),
        ("dual_branch", {"train_cm_inv": False}, (168_146_432 - 54_553_600, 469 - 49)),
        ("predictor", {}, (529_417, 4)),
        ("drm", {}, (21_710_736, None)),
    ],
)
def test_full_size_stages_train_what_the_specification_says(stage, losses, expected):
    config = MPerceiverConfig.sd21()
    model = MPerceiver(config)
    built = build_stage(stage, tiny_experiment(config, **losses), model)
    sizes = [
        int(np.prod(v.get_value().shape)) for path, v in parameters.declared(model).items() if built.is_trained(path)
    ]
    assert sum(sizes) == expected[0] and expected[1] in (None, len(sizes))


@pytest.mark.parametrize(
    ("part", "change", "fields"),
    [
        ("unet", {"latent_channels": 8}, ("unet.latent_channels", "vae.latent_channels")),
        ("adapter", {"latent_channels": 8}, ("adapter.latent_channels", "vae.latent_channels")),
        ("unet", {"context_width": 8}, ("unet.context_width", "text.width")),
        ("cm", {"width": 32}, ("cm.width", "text.width")),
        ("cm", {"embed_width": 8}, ("cm.embed_width", "predictor.vision.embed_width")),
        ("unet", {"feature_channels": 8}, ("unet.feature_channels", "adapter.out_channels")),
        ("adapter", {"channel_mult": (1, 2, 2)}, ("unet.channel_mult", "adapter.channel_mult")),
        ("cm", {"classes": 4}, ("cm.classes", "predictor.classes")),
        ("adapter", {"classes": 4}, ("adapter.classes", "predictor.classes")),
        ("drm", {"classes": 4}, ("drm.classes", "predictor.classes")),
        ("drm", {"channels": (8, 16)}, ("drm.channels", "vae.tap_channels")),
    ],
)
def test_parts_that_do_not_fit_are_named(part, change, fields):
    tiny = tiny_config()
    with pytest.raises(ValueError) as caught:
        replace(tiny, **{part: replace(getattr(tiny, part), **change)})
    assert all(field in str(caught.value) for field in fields), caught.value


@pytest.mark.usefixtures("unchecked_shapes")
def test_sizes_of_images_and_latents():
    full, tiny = MPerceiverConfig.sd21(), tiny_config()
    assert (full.downscale, full.multiple) == (8, 64) and (tiny.downscale, tiny.multiple) == (2, 4)
    assert full.latent_shape((2, 512, 576, 3)) == (2, 64, 72, 4)
    with pytest.raises(ValueError, match="token_order: 't_cm' or 'cm_t'"):
        tiny_config(token_order="tcm")


def test_small_fits_together_for_images_that_are_no_squares():
    config = MPerceiverConfig.small()
    model = MPerceiver(config)
    structure, values = parameters.split(model)

    def restored(values, lq, lq_clip, x, t):
        model = parameters.merge(structure, values)
        condition = model.condition(lq, lq_clip)
        return model.decode(model.predict(x, t, condition), lq, condition.taps, condition.logits)

    lq = jax.ShapeDtypeStruct((2, 2 * config.multiple, 3 * config.multiple, 3), jnp.bfloat16)
    side = config.predictor.vision.image_size
    clip = jax.ShapeDtypeStruct((2, 4, side, side, 3), jnp.bfloat16)
    x = jax.ShapeDtypeStruct(config.latent_shape(lq.shape), jnp.bfloat16)
    out = jax.eval_shape(restored, values, lq, clip, x, jax.ShapeDtypeStruct((2,), jnp.int32))
    assert (out.shape, out.dtype) == (lq.shape, jnp.bfloat16)
