"""The evaluation command on small trees: right figures, named faults, interruptions, a model."""

import json
import re
from types import SimpleNamespace
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from data_pipelines.images import decode_image
from mperceiver_jax.evaluate.__main__ import main
from mperceiver_jax.evaluate.metrics.full_reference import psnr
from mperceiver_jax.evaluate.metrics.scorer import Scorer
from mperceiver_jax.evaluate.protocols import runner
from mperceiver_jax.evaluate.protocols.protocol import load_protocol
from mperceiver_jax.image_files import pad_to
from mperceiver_jax.random_streams import Streams
from mperceiver_jax.restore import Restorer
from mperceiver_jax.restore.settings import RestoreSettings
from tests.support.evaluation_trees import NOISE, photos, save, table
from tests.support.finished_run import finished_run

measure = pytest.importorskip("skimage.metrics")
restoration = pytest.importorskip("skimage.restoration")


def middle(pixels):
    """PromptIR's crop to multiples of 16."""
    rows, columns = (side % 16 for side in pixels.shape[:2])
    height, width = pixels.shape[:2]
    return pixels[rows // 2 : height - rows + rows // 2, columns // 2 : width - columns + columns // 2]


def report(folder):
    return json.loads((folder / "report.json").read_text())


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
    """Non-local means on PromptIR's noise, as an independent script does it, and scikit-image's figures."""
    root = tmp_path_factory.mktemp("peer")
    for k, photo in enumerate(photos()):
        save(root / "data" / "denoise" / "bsd68" / f"im{k}.png", photo)
    np.random.seed(0)
    figures = {}
    for name, sigma in zip(NOISE, (15, 25, 50), strict=True):
        for k, photo in enumerate(photos()):
            clean = middle(photo)
            noisy = np.clip(clean + np.random.randn(*clean.shape) * sigma, 0, 255).astype(np.uint8)
            restored = restoration.denoise_nl_means(noisy, 3, 3, sigma / 300, channel_axis=-1)
            levels = np.uint8(np.rint(np.clip(restored, 0, 1) * 255))
            save(root / "outputs" / name / f"im{k}.png", levels)
            figures[name, f"im{k}"] = {
                "psnr": measure.peak_signal_noise_ratio(clean, levels),
                "ssim": measure.structural_similarity(clean, levels, channel_axis=-1),
                "input_psnr": measure.peak_signal_noise_ratio(clean, noisy),
            }
    return root, figures


def command(root, output, *more):
    arguments = [f"--data={root / 'data'}", "--protocol=promptir-3task", f"--sets={','.join(NOISE)}"]
    return main([f"--outputs={root / 'outputs'}", *arguments, f"--output={output}", *more])


def test_a_classical_method_gets_the_figures_of_an_independent_script(peer, tmp_path, capsys):
    root, expected = peer
    assert command(root, tmp_path, "--title=NLM", "--show=2") == 0
    found = table(tmp_path)
    assert found.keys() == expected.keys()
    for key, figures in expected.items():
        for name, value in figures.items():
            assert float(found[key][name]) == pytest.approx(value, abs=1e-5), (key, name)
    results = report(tmp_path)
    for name in NOISE:
        mean = np.mean([figures["psnr"] for key, figures in expected.items() if key[0] == name])
        assert results["sets"][name]["output"]["psnr"] == pytest.approx(mean, abs=1e-5)
    # Two sets of the five are not there, so that there is no average; counts are not the published ones.
    assert results["averages"] == {} and len(results["warnings"]) == 3
    text = (tmp_path / "report.md").read_text()
    assert re.search(r"\| \*\*NLM\*\* \| [\d.]+ \| [\d.]+ \| [\d.]+ \| measured here \|", text)
    assert "| PromptIR (35.6 M) | 33.98 | 31.31 | 28.06 | R, S |" in text
    assert all(trap in text for trap in load_protocol("promptir-3task").traps)
    assert "warning: CBSD68-15 has 3 images here" in capsys.readouterr().err


def test_the_page_needs_nothing_but_its_own_images(peer, tmp_path):
    root, figures = peer
    assert command(root, tmp_path, "--show=2") == 0
    page = (tmp_path / "index.html").read_text()
    assert "http" not in page and "<!--" not in page
    shown = re.findall(r"images/[0-9a-f]{12}-(?:input|output|truth)\.png", page)
    assert len(shown) == 3 * 4 and all((tmp_path / name).is_file() for name in shown)
    order = re.findall(r"<figcaption>(\S+): (\S+),", page)
    ranked = sorted(figures, key=lambda key: figures[key]["psnr"])
    assert order == [*ranked[:2], *ranked[:-3:-1]]


def test_an_interrupted_evaluation_goes_on_and_ends_alike(peer, tmp_path, monkeypatch, capsys):
    root, _ = peer
    assert command(root, tmp_path / "whole") == 0
    measured, real = [], runner._measure

    def counted(pool, batch, *rest):
        if len(measured) == 4:
            raise KeyboardInterrupt
        measured.extend(batch)
        return real(pool, batch, *rest)

    monkeypatch.setattr(runner, "_measure", counted)
    assert command(root, tmp_path / "parts", "--batch-size=1") == 130
    assert "goes on where it stopped" in capsys.readouterr().err
    # As a kill leaves it: a line that was not finished.
    journal = tmp_path / "parts" / "images.jsonl"
    journal.write_text(journal.read_text() + '{"key": "CBSD68-25/im1", "psnr": 1')
    measured[:] = [None] * 5
    assert command(root, tmp_path / "parts", "--batch-size=1") == 0
    assert len(measured) == 5 + 5
    for name in ("images.csv", "report.md"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    # Nothing is measured twice, but for what has changed.
    measured.clear()
    measured.append(None)
    assert command(root, tmp_path / "parts") == 0 and len(measured) == 1
    path = root / "outputs" / "CBSD68-50" / "im2.png"
    before = path.read_bytes()
    save(path, 255 - decode_image(path))
    assert command(root, tmp_path / "parts") == 0 and len(measured) == 2
    assert float(table(tmp_path / "parts")["CBSD68-50", "im2"]["psnr"]) < 15
    path.write_bytes(before)
    # Other settings are another evaluation.
    assert command(root, tmp_path / "parts", "--metrics=psnr") == 2
    assert "metrics: ['psnr', 'ssim'] then, ['psnr'] now" in capsys.readouterr().err
    assert command(root, tmp_path / "parts", "--metrics=psnr", "--restart") == 0


def test_parts_measured_by_several_processes_make_the_whole(peer, tmp_path, capsys):
    root, _ = peer
    assert command(root, tmp_path / "whole") == 0
    for part in ("1/2", "0/2"):
        assert command(root, tmp_path / "parts", f"--part={part}", "--batch-size=1") == 0
        assert not (tmp_path / "parts" / "report.md").exists()
    told = capsys.readouterr().out
    assert "part 1/2 of outputs: 4 images" in told and "part 0/2 of outputs: 5 images" in told
    assert command(root, tmp_path / "parts") == 0
    assert (tmp_path / "parts" / "images.csv").read_bytes() == (tmp_path / "whole" / "images.csv").read_bytes()
    # The last call measured nothing.
    assert len((tmp_path / "parts" / "images.jsonl").read_text().splitlines()) == 1
    assert command(root, tmp_path / "parts", "--part=2/2") == 2


def test_faults_are_named_before_anything_is_measured(peer, tmp_path, capsys):
    root, _ = peer
    arguments = ["--protocol=folder", f"--output={tmp_path / 'out'}", f"--data={tmp_path / 'gt'}"]
    for k, photo in enumerate(photos()):
        save(tmp_path / "gt" / f"{k}.png", photo)
        if k < 2:
            save(tmp_path / "made" / f"{k}.png", photo[: 50 + k])
    run = lambda *more: (main([f"--outputs={tmp_path / 'made'}", *arguments, *more]), capsys.readouterr().err)
    status, told = run()
    assert status == 2 and not (tmp_path / "out").exists()
    assert "1 outputs are missing" in told and "gt/2.png" in told and "--partial" in told
    assert "made/0.png is 70x50, not 70x53" in told and "made/1.png is 70x51, not 70x54" in told
    save(tmp_path / "made" / "0.png", photos()[0])
    save(tmp_path / "made" / "1.png", photos()[1])
    status, told = run("--partial")
    assert status == 0 and "warning: folder: 1 outputs are missing" in told
    assert len(table(tmp_path / "out")) == 2 and "inf" in (tmp_path / "out" / "report.md").read_text()
    assert report(tmp_path / "out")["sets"]["folder"]["output"]["psnr"] is None  # infinite: equal images
    save(tmp_path / "made" / "9.png", photos()[0])
    assert "1 of 3 images" in run()[1]
    (tmp_path / "made" / "9.png").unlink()
    other = tmp_path / "training_run"
    other.mkdir()
    (other / "report.json").write_text('{"title": "a run"}')
    for more, message in [
        (["--metrics=psnr,vmaf"], "unknown metrics vmaf"),
        (["--metrics=niqe"], "--niqe-model"),
        (["--metrics=fid"], "--features"),
        (["--metrics=fid", "--features=no_such_module:f"], "no_such_module"),
        ([f"--compare={other}"], "is no report of an evaluation"),
        (["--sets=rain"], "no set rain"),
        (["--set=folder"], "NAME=LQ,GT"),
        (["--protocol=nothing"], "promptir-3task"),
    ]:
        status, told = run("--partial", *more)
        assert status == 2 and message in told, told
    assert command(root, tmp_path / "none", "--sets=Rain100L") == 2
    assert "no folder derain/Rain100L/target" in capsys.readouterr().err


def test_luma_resizing_and_borders_are_those_of_their_papers(tmp_path):
    """`all-weather` and `mioir-indis` against scikit-image on what their scripts would load."""
    colour = pytest.importorskip("skimage.color")
    rng = np.random.default_rng(0)
    psnr_of, ssim_of = measure.peak_signal_noise_ratio, measure.structural_similarity
    gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    weather, mioir = [], []
    for k, photo in enumerate(photos()):
        save(tmp_path / "gt" / f"{k}.png", photo)
        save(tmp_path / "lq" / f"{k}.png", photo)
        noisy = np.clip(photo + rng.normal(0, 20, photo.shape), 0, 255).astype(np.uint8)
        save(tmp_path / "mioir" / f"{k}.png", noisy)
        clean = photo[4:-4, 4:-4].astype(float)
        inner = noisy[4:-4, 4:-4].astype(float)
        mioir.append((psnr_of(clean, inner, data_range=255), ssim_of(clean, inner, channel_axis=-1, **gaussian)))
        truth = np.asarray(Image.fromarray(photo).resize((80, 64), Image.Resampling.LANCZOS))
        made = np.clip(truth + rng.normal(0, 20, truth.shape), 0, 255).astype(np.uint8)
        save(tmp_path / "weather" / f"{k}.png", made)
        y, x = (colour.rgb2ycbcr(levels)[..., 0] for levels in (truth, made))
        weather.append((psnr_of(y, x, data_range=255), ssim_of(y, x, **gaussian)))
    for name, protocol, column, expected in (
        ("weather", "all-weather", "RainDrop-A", weather),
        ("mioir", "mioir-indis", "blur", mioir),
    ):
        folders = f"--set={column}={tmp_path / 'lq'},{tmp_path / 'gt'}"
        arguments = [f"--protocol={protocol}", f"--sets={column}", folders, f"--data={tmp_path}", "--pairing=stem"]
        output = tmp_path / f"figures-{name}"
        made = [f"--outputs={tmp_path / name}", f"--output={output}", "--metrics=psnr,ssim"]
        assert main([*arguments, *made]) == 0
        found = report(output)["sets"][column]["output"]
        assert found["psnr"] == pytest.approx(np.mean([p for p, _ in expected]), abs=1e-5), protocol
        assert found["ssim"] == pytest.approx(np.mean([s for _, s in expected]), abs=1e-5), protocol


class Halver:
    """A restorer whose model halves an image and adds a hundredth of noise; it pads to multiples of 16."""

    settings = RestoreSettings(seed=7, tile=0)
    notes = ("a stage is unfinished",)
    weight_kind = "last parameters"
    sampler = SimpleNamespace(name="ddim", steps=3)
    predictor = None
    params: ClassVar = {"factor": jnp.array(0.5)}

    @property
    def key(self):
        return Streams(self.settings.seed).key("restore")

    @property
    def backend(self):
        return self

    def padded(self, image):
        return pad_to(image, 16, 16)

    def condition(self, image, padded):
        return np.zeros((1, 2, 2, 3), np.float32)

    @staticmethod
    def restore(params, lq, condition, key):
        assert lq.shape[0] == 1  # every image by itself, with the same noise
        return params["factor"] * lq + 0.01 * jax.random.uniform(key, lq.shape), None

    def alone(self, image):
        out, _ = self.restore(self.params, self.padded(image)[None], None, self.key)
        return np.asarray(out)[0, : image.shape[0], : image.shape[1]]


def small_pairs(root):
    """Pairs of two sizes."""
    for k, photo in enumerate(photos(5, 40, 48)):
        save(root / "gt" / f"{k}.png", photo[: 40 - k % 2])
        save(root / "lq" / f"{k}.png", photo[: 40 - k % 2] // 2)
    return root


def test_the_bundled_weights_are_evaluated_where_nothing_is_named(tmp_path, monkeypatch):
    data, opened = small_pairs(tmp_path / "data"), []
    monkeypatch.setattr(Restorer, "from_checkpoint", lambda model, *_, **__: opened.append(model) or Halver())
    arguments = [f"--data={data}", "--protocol=folder", f"--set=folder={data / 'lq'},{data / 'gt'}"]
    assert main([*arguments, f"--output={tmp_path / 'out'}"]) == 0
    assert opened == ["base"]
    assert json.loads((tmp_path / "out" / "report.json").read_text())["title"] == "base"


@pytest.mark.parametrize("batch_size", [None, 1])
def test_a_model_is_run_over_devices_and_scored_before_rounding(tmp_path, monkeypatch, capsys, batch_size):
    data = small_pairs(tmp_path / "data")
    monkeypatch.setattr(Restorer, "from_checkpoint", lambda *_, **__: Halver())
    (tmp_path / "mine.toml").write_text(
        'title = "Mine"\nabout = ""\ntraps = []\n[preprocessing]\nlevels = "float"\nmetrics = ["psnr"]\n'
        '[[sets]]\nname = "a"\ntask = "x"\nlq = "lq"\ngt = "gt"\n'
    )
    arguments = [f"--checkpoint={tmp_path / 'run'}", f"--data={data}", f"--protocol={tmp_path / 'mine.toml'}"]
    if batch_size:
        arguments.append(f"--batch-size={batch_size}")
    assert main([*arguments, f"--output={tmp_path / 'out'}", "--title=half"]) == 0
    assert "warning: a stage is unfinished" in capsys.readouterr().err
    rows = table(tmp_path / "out")
    for k in range(5):
        degraded, truth = (decode_image(data / side / f"{k}.png") / np.float32(255) for side in ("lq", "gt"))
        restored = Halver().alone(degraded)
        assert float(rows["a", str(k)]["psnr"]) == pytest.approx(psnr(restored, truth), abs=1e-4)
        written = decode_image(tmp_path / "out" / "restored" / "a" / f"{k}.png")
        assert np.abs(255 * restored - written).max() <= 0.51
    identity = report(tmp_path / "out")["evaluated"]
    assert identity["seed"] == 7 and identity["steps"] == 3 and len(identity["weights"]) == 16
    # A restored image that has gone is made again.
    (tmp_path / "out" / "restored" / "a" / "2.png").unlink()
    assert main([*arguments, f"--output={tmp_path / 'out'}", "--title=half"]) == 0
    assert (tmp_path / "out" / "restored" / "a" / "2.png").is_file()


@pytest.mark.slow
def test_a_trained_model_in_batches_restores_as_it_does_alone(tmp_path):
    finished_run(tmp_path / "run")
    data = small_pairs(tmp_path / "data")
    arguments = [f"--checkpoint={tmp_path / 'run'}", f"--data={data}", "--protocol=folder"]
    assert main([*arguments, f"--output={tmp_path / 'out'}"]) == 0
    restorer = Restorer.from_checkpoint(tmp_path / "run")
    for k in range(5):
        alone = restorer(decode_image(data / "lq" / f"{k}.png"))
        written = decode_image(tmp_path / "out" / "restored" / "folder" / f"{k}.png")
        assert np.abs(alone.astype(int) - written).max() <= 1


def test_protocols_are_printed(capsys):
    assert main(["protocols"]) == 0
    assert capsys.readouterr().out.count("trap: ") > 20
    assert main(["protocols", "cdd11"]) == 0
    assert "eleven" in capsys.readouterr().out
    assert main(["protocols", "none"]) == 2
    assert main([]) == 2 and "--protocol" in capsys.readouterr().err


def test_distances_by_networks_do_not_depend_on_batches_and_devices(peer, tmp_path, monkeypatch):
    """The network is one product here; eight devices, batches that do not divide by them."""
    network = ({"w": jnp.array(2.0)}, jax.jit(lambda params, x, y: params["w"] * jnp.abs(x - y).mean((1, 2, 3))))
    monkeypatch.setattr(Scorer, "_network", lambda self, name: network)
    root, _ = peer
    found = []
    for batch_size in (1, 2, 8):
        output = tmp_path / str(batch_size)
        assert command(root, output, "--metrics=lpips_vgg", f"--batch-size={batch_size}", "--sets=CBSD68-50") == 0
        found.append([float(row["lpips_vgg"]) for row in table(output).values()])
    np.testing.assert_allclose(found[1:], [found[0]] * 2, rtol=1e-6)
    clean, made = middle(photos()[0]), decode_image(root / "outputs" / "CBSD68-50" / "im0.png")
    assert found[0][0] == pytest.approx(2 * np.abs(clean / 255 - made / 255).mean(), rel=1e-5)
