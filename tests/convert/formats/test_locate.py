"""Which files of a directory or a hub repository are read."""

import sys
import types
from pathlib import Path

import pytest

from mperceiver_jax.convert.formats.locate import chosen, weight_files

DIFFUSERS = ["model_index.json", "unet/config.json", "vae/config.json", "tokenizer/vocab.json"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            [
                *DIFFUSERS,
                "v2-1_512-ema-pruned.ckpt",
                "v2-1_512-ema-pruned.safetensors",
                "unet/diffusion_pytorch_model.safetensors",
                "unet/diffusion_pytorch_model.fp16.safetensors",
                "unet/diffusion_pytorch_model.bin",
                "vae/diffusion_pytorch_model.bin",
                "text_encoder/model.fp16.safetensors",
                "adapters.safetensors",
            ],
            [
                "unet/diffusion_pytorch_model.safetensors",
                "vae/diffusion_pytorch_model.bin",
                "text_encoder/model.fp16.safetensors",
                "adapters.safetensors",
            ],
        ),
        (
            ["README.md", "open_clip_pytorch_model.bin", "open_clip_model.safetensors", "pytorch_model.bin.index.json"],
            ["open_clip_model.safetensors"],
        ),
        (
            ["model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
            ["model.safetensors.index.json"],
        ),
        (
            ["unet/diffusion_pytorch_model.safetensors.index.fp16.json", "unet/diffusion_pytorch_model.bin"],
            ["unet/diffusion_pytorch_model.safetensors.index.fp16.json"],
        ),
        (["mperceiver.ckpt", "notes.txt"], ["mperceiver.ckpt"]),
        (["exported.safetensors", "adapters.safetensors"], ["exported.safetensors"]),
        (["adapters.safetensors"], ["adapters.safetensors"]),
    ],
)
def test_one_file_of_each_component(names, expected):
    assert chosen(names, "here") == expected


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["a.ckpt", "b.ckpt"], r"here: which of a\.ckpt, b\.ckpt\?"),
        (["unet/model.fp16.safetensors", "unet/model.ema.safetensors"], r"here/unet: which of"),
        (["README.md"], r"here: no weights there; expected one of unet/"),
        (["deep/er/model.safetensors"], r"here: no weights there"),
    ],
)
def test_guesses_are_not_made(names, told):
    with pytest.raises(ValueError, match=told):
        chosen(names, "here")


def test_a_directory_is_read_only_where_weights_can_be(tmp_path, monkeypatch):
    for name in ("unet/model.safetensors", "unet/deep/x.bin", "elsewhere/huge/y.bin", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    listed, iterdir = [], Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: listed.append(path) or iterdir(path))
    (file,) = weight_files(str(tmp_path))
    assert file.path == tmp_path / "unet" / "model.safetensors" and listed == [tmp_path, tmp_path / "unet"]


def test_names_that_are_nothing():
    for source in ("no/such/", "absent.ckpt", "runs/absent.safetensors", "/a/b/c/d"):
        with pytest.raises(FileNotFoundError, match="no such file or directory"):
            weight_files(source)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub with one repository, whose files are in `tmp_path`; `offline` takes the network away."""

    class Api:
        def list_repo_files(self, repository, revision=None):
            hub.asked.append((repository, revision))
            if hub.offline or repository != "owner/name":
                raise ConnectionError(f"cannot reach {repository}\nand a long trace")
            return [file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*") if file.is_file()]

    def download(repository, name, revision=None):
        hub.fetched.append(name)
        return str(tmp_path / name)

    def snapshot(repository, revision=None, local_files_only=False):
        assert local_files_only
        if not hub.fetched or repository != "owner/name":
            raise FileNotFoundError("not in the cache")
        return str(tmp_path)

    hub = types.ModuleType("huggingface_hub")
    hub.HfApi, hub.hf_hub_download, hub.snapshot_download = Api, download, snapshot
    hub.asked, hub.fetched, hub.offline = [], [], False
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    for name in ("unet/model.safetensors", "big/model-1-of-1.safetensors"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "big" / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1-of-1.safetensors"}}')
    return hub


def test_repositories_are_downloaded_file_by_file(hub):
    (file,) = weight_files("owner/name@v1")
    assert hub.asked == [("owner/name", "v1")] and hub.fetched == ["unet/model.safetensors"]
    assert file.name == "owner/name/unet/model.safetensors" and file.files == [file.path]
    (file,) = weight_files("owner/name/big/model.safetensors.index.json")
    assert hub.fetched[1:] == ["big/model.safetensors.index.json", "big/model-1-of-1.safetensors"]
    assert [shard.name for shard in file.files] == ["model-1-of-1.safetensors"]


def test_without_a_network_the_cache_serves_or_the_message_helps(hub):
    hub.offline = True
    told = r"owner/name: no such file or directory here, and .* cannot be read \(cannot reach owner/name\)\. Check"
    with pytest.raises(FileNotFoundError, match=told):
        weight_files("owner/name")
    hub.offline = False
    weight_files("owner/name")
    hub.offline = True
    assert [file.name for file in weight_files("owner/name")] == ["owner/name/unet/model.safetensors"]
