"""The command `words`: captions of degradations as published text towers embed them."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from mperceiver_jax import convert
from mperceiver_jax.convert.__main__ import main
from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.clip import TextConfig, TextTower
from mperceiver_jax.models.restorers.registry import word_vectors
from mperceiver_jax.models.restorers.text_prompts import caption_ids, caption_vectors
from tests.support import published_weights

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

FIVE = ("denoise", "derain", "dehaze", "deblur_motion", "lowlight")
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 9,
    "projection_dim": 12,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
}


def text_model(activation: str = "gelu"):
    torch.manual_seed(0)
    settings = transformers.CLIPTextConfig(**SIZES, hidden_act=activation)
    return transformers.CLIPTextModelWithProjection(settings).eval()


def test_words_of_transformers_are_its_own(tmp_path, capsys):
    theirs = text_model()
    theirs.save_pretrained(tmp_path / "tower")
    output = tmp_path / "words.npy"
    assert main(["words", str(tmp_path / "tower"), f"--output={output}"]) == 0
    told = capsys.readouterr().out
    assert "5 embeddings of 12 numbers (gaussian noise, rain, haze, motion blur, low light)" in told
    assert f"--config.model.words={output} --config.model.network.text_width=12" in told
    config = TextConfig(width=16, layers=2, layers_run=2, heads=2, context_length=9, projection_width=12)
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(caption_ids(FIVE, config).astype(np.int64))).text_embeds.numpy()
    wanted /= np.linalg.norm(wanted, axis=-1, keepdims=True)
    np.testing.assert_allclose(word_vectors(str(output), FIVE, 12), wanted, atol=1e-5)
    assert main(["words", str(tmp_path / "tower"), f"--output={output}"]) == 1
    assert "exists already" in capsys.readouterr().err


def test_words_of_open_clip_are_those_of_its_tower(tmp_path):
    # As many blocks as towers have that are not OpenAI's, whose activation is another.
    sizes = TextConfig(width=64, layers=13, layers_run=13, heads=1, context_length=9, projection_width=12)
    tower = parameters.initialise(TextTower(sizes))
    save_file(convert.dump(tower, "open_clip"), tmp_path / "open_clip_model.safetensors")
    output = tmp_path / "words.npy"
    source = str(tmp_path / "open_clip_model.safetensors")
    assert main(["words", source, f"--output={output}", "--tasks=derain,dejpeg"]) == 0
    np.testing.assert_allclose(np.load(output), caption_vectors(tower, ("derain", "dejpeg")), atol=1e-6)


def test_towers_of_another_kind_are_refused(tmp_path, capsys):
    text_model("quick_gelu").save_pretrained(tmp_path / "openai")
    published_weights.text(2).save_pretrained(tmp_path / "sd" / "text_encoder")
    published_weights.vae().save_pretrained(tmp_path / "vae")
    capsys.readouterr()
    for source, message in (
        ("openai", "the text tower has quick_gelu; only those with exact GELU"),
        ("sd", "a text tower without its embeddings or its projection"),
        ("vae", "no CLIP text tower there"),
    ):
        assert main(["words", str(tmp_path / source), f"--output={tmp_path / 'words.npy'}"]) == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert not (tmp_path / "words.npy").exists()
