"""The training command as a user meets it: usage, mistakes, signals, a full disk, other devices."""

import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from mperceiver_jax.checkpoints.directory import complete_steps
from mperceiver_jax.checkpoints.initial_params import checkpoint_folder, trained_values
from mperceiver_jax.config.phases import ORDER
from mperceiver_jax.training.metric_log import read_metrics
from tests.support.processes import ROOT, environment
from tests.support.tiny_experiment import write_photographs

# The stage that compiles fastest is enough to be killed in; each update is logged, and every fifth saved.
STAGE = "predictor"
UPDATES = 30
SETTINGS = [
    *[f"--config.stages.{name}.steps=0" for name in ORDER if name != STAGE],
    f"--config.stages.{STAGE}.steps={UPDATES}",
    "--config.checkpoint.every=5",
    # Checkpoints of a quarter of a megabyte.
    "--config.model.predictor.hidden=3000",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with photographs and, later, a compilation cache."""
    folder = tmp_path_factory.mktemp("main")
    write_photographs(folder / "train")
    write_photographs(folder / "heldout", seed=1)
    return folder


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "mperceiver_jax.main", *map(str, arguments)]


def tiny(place: Path, workdir: Path, *more: str) -> list[str]:
    return command(
        f"--config={ROOT / 'tests' / 'support' / 'tiny_experiment.py'}",
        f"--workdir={workdir}",
        f"--compilation_cache={place / 'cache'}",
        f"--config.data.images={place / 'train'}",
        f"--config.data.heldout_images={place / 'heldout'}",
        *more,
    )


def run(arguments: Sequence[str], devices: int = 1) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, env=environment(devices), cwd=ROOT, capture_output=True, text=True, timeout=300)


def losses(workdir: Path) -> list[float]:
    rows = read_metrics(workdir / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, UPDATES + 1))
    return [row["loss"] for row in rows]


def finished_steps(workdir: Path) -> int:
    """Updates as of the last complete checkpoint."""
    return max(complete_steps(checkpoint_folder(workdir, STAGE)), default=0)


def signalled(arguments: Sequence[str], workdir: Path, updates: int, number: int, delay: float = 0.0):
    """Starts the command, sends the signal some seconds after it made that many updates, and waits.

    Returns (exit code, standard output, standard error).
    """
    child = subprocess.Popen(
        arguments, env=environment(1), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    log, began = workdir / "metrics.jsonl", time.time()
    while not log.exists() or sum(row["time"] > began for row in read_metrics(log)) < updates:
        assert child.poll() is None and time.time() < began + 200, child.communicate()
        time.sleep(0.01)
    time.sleep(delay)
    child.send_signal(number)
    out, err = child.communicate(timeout=200)
    return child.returncode, out, err


@pytest.fixture(scope="module")
def reference(place) -> Path:
    """The workdir of a run that nothing disturbed."""
    result = run(tiny(place, place / "reference", *SETTINGS))
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("mperceiver_jax: MPerceiver, variant tiny on 1 x cpu")
    assert "expected: about" in result.stdout
    assert f"Report: {place / 'reference' / 'report.md'}" in result.stdout
    # Nothing but the run's own lines: no warnings of libraries, no control characters of a bar.
    for line in result.stderr.splitlines():
        assert re.fullmatch(rf"{STAGE}(: accuracy| \d+/{UPDATES}, loss) .*", line), line
    return place / "reference"


@pytest.fixture(scope="module")
def terminated(place, reference) -> Path:
    """The workdir of a run that SIGTERM stopped."""
    workdir = place / "terminated"
    code, out, err = signalled(tiny(place, workdir, *SETTINGS), workdir, 7, signal.SIGTERM)
    assert code == 0, err
    assert "Stopped on request and saved; the same command continues the run." in out
    assert "Asked to stop" in err and re.search(rf"{STAGE}: stopped at update \d+ of {UPDATES}, saved in", err)
    assert 7 <= finished_steps(workdir) < UPDATES
    assert not (workdir / "report.json").exists()
    return workdir


def test_a_stopped_run_continues_bit_for_bit_even_after_a_full_disk(place, reference, terminated):
    workdir = Path(shutil.copytree(terminated, place / "continued"))
    saved = finished_steps(workdir)
    arguments = tiny(place, workdir, *SETTINGS)
    # No file may grow beyond this many KiB, as when the disk is full.
    full = run(["bash", "-c", 'ulimit -f 100; exec "$@"', "-", *arguments])
    assert full.returncode == 1
    message = full.stderr.splitlines()[-1]
    assert re.match(rf"error: cannot save checkpoint \d+ in {workdir}/checkpoints/{STAGE}: .*File too large", message)
    assert f"Complete checkpoints there: [{saved}" in message.replace("[5, ", "[")
    assert "Traceback" not in full.stderr
    assert finished_steps(workdir) == saved
    code, out, err = signalled(arguments, workdir, 3, signal.SIGINT)
    assert code == 0 and "Stopped on request" in out, err
    result = run(arguments)
    assert result.returncode == 0 and f"{STAGE}: continuing at update" in result.stderr
    assert losses(workdir) == losses(reference)
    assert (workdir / "report.json").exists()


def test_a_run_on_one_device_continues_on_eight(place, reference, terminated):
    workdir = Path(shutil.copytree(terminated, place / "eight"))
    result = run(tiny(place, workdir, *SETTINGS), devices=8)
    assert result.returncode == 0, result.stderr
    assert "on 8 x cpu" in result.stdout
    np.testing.assert_allclose(losses(workdir), losses(reference), rtol=5e-4, atol=1e-6)


def test_killed_at_any_moment_a_run_ends_where_it_would_have(place, reference):
    workdir = place / "killed"
    arguments = tiny(place, workdir, *SETTINGS)
    rng = np.random.default_rng()
    for updates in (6, 9):
        code, _, _ = signalled(arguments, workdir, updates, signal.SIGKILL, float(rng.uniform(0, 0.2)))
        assert code in (-signal.SIGKILL, 0)
    result = run(arguments)
    assert result.returncode == 0, result.stderr
    assert losses(workdir) == losses(reference)
    expected = trained_values(reference, STAGE)
    for path, value in trained_values(workdir, STAGE).items():
        np.testing.assert_array_equal(value, expected[path])


def test_help_shows_the_usage():
    shown = run(command("--help")).stdout
    assert "python -m mperceiver_jax.main --config=configs/allinone.py[:small|:base|:sd21]" in shown
    assert "--workdir" in shown and "--config.on_nonfinite=skip" in shown


def unpaired(place: Path) -> str:
    if not (place / "lq").exists():
        write_photographs(place / "lq", count=3)
        write_photographs(place / "gt", count=2)
    pair = {"lq": str(place / "lq"), "gt": str(place / "gt")}
    return f"--config.data.pairs.dehaze={pair}"


MISTAKES = {
    "unknown field": (["--config.sede=3"], r"config\.sede: no such field; config has variant, "),
    "unknown group": (["--config.stages.vaee.steps=3"], r"no such field: 'vaee' Did you mean \"vae\""),
    "wrong type": (["--config.seed=many"], r"flag --config\.seed=many: invalid literal for int\(\)"),
    "bad value": (["--config.compute_dtype=int8"], r"config\.compute_dtype: one of .* not 'int8'"),
    "no folder": (
        ["--config.data.pairs.dehaze={'lq': 'nowhere', 'gt': 'x'}"],
        r"config\.data\.pairs\.dehaze: no data folder at nowhere\n",
    ),
    "unpaired": (["UNPAIRED"], r"config\.data\.pairs\.dehaze: 1 images in .* have no partner .*lq/image_2\.png"),
    "unknown variant": (
        ["--config=configs/allinone.py:big"],
        r"configs/allinone\.py has the variants small, base, base,SCALE and sd21",
    ),
    "no config": (["--config=configs/nope.py:small"], r"there is no config file configs/nope\.py\n"),
    "no config to change": (["--config=nope.py", "--config.seed=3"], r"there is no config file nope\.py\n"),
    "no pretrained weights": (
        ["--config=configs/allinone.py:sd21"],
        r"config\.pretrained: .*--config\.pretrained=PATH.*:small",
    ),
    "argument": (["configs/allinone.py"], r"unexpected argument 'configs/allinone\.py'"),
    "unknown flag": (["--work_dir=x"], r"Unknown command line flag 'work_dir'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(place, tmp_path, mistake):
    arguments, message = MISTAKES[mistake]
    arguments = [unpaired(place) if argument == "UNPAIRED" else argument for argument in arguments]
    if not arguments[0].startswith("--config="):
        photographs = [
            f"--config.data.images={place / 'train'}",
            f"--config.data.heldout_images={place / 'heldout'}",
        ]
        arguments = [f"--config={ROOT / 'tests' / 'support' / 'tiny_experiment.py'}", *photographs, *arguments]
    result = run(command(f"--workdir={tmp_path / 'run'}", *arguments))
    assert result.returncode == 1
    assert re.fullmatch(rf"error: {message}(.*\n)?", result.stderr), result.stderr
    assert result.stdout == ""
    assert not (tmp_path / "run").exists()


def test_words_that_are_no_embeddings_are_reported_at_the_start(tmp_path):
    arguments = command(f"--config={ROOT / 'configs' / 'am_promptir.py'}:3task", f"--workdir={tmp_path / 'run'}")
    message = run([*arguments, f"--config.data.images={tmp_path / 'absent'}"]).stderr
    assert message.startswith("warning: The words are fixed random vectors") and "error: " in message
