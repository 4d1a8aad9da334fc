"""Checkpoints: what is kept, what is chosen, what comes back, and what happens when something fails."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mperceiver_jax.checkpoints.fingerprint import fingerprint
from mperceiver_jax.checkpoints.manager import CheckpointError, Checkpoints
from mperceiver_jax.distributed import sharding
from mperceiver_jax.distributed.sharding import MeshConfig
from tests.support.processes import environment, run_processes

OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))


def _state(seed=0, mesh=None):
    """A training state in small: dotted paths, nested optimizer state, bf16, a counter, an empty part."""
    rng = np.random.default_rng(seed)
    params = {
        "unet.conv_in.weight": rng.standard_normal((16, 8)).astype(np.float32),
        "unet.conv_in.bias": rng.standard_normal(3).astype(np.float32),
    }
    params = sharding.ParameterLayout(mesh or sharding.make_mesh(), threshold=0).place_all(params)
    ema = {path: value.astype(jnp.bfloat16) for path, value in params.items()}
    opt_state = jax.tree.map(lambda leaf: leaf + seed, OPTIMIZER.init(params))
    return {"trainable": params, "opt_state": opt_state, "ema": ema, "step": seed, "critic": {}}


def _abstract(state, mesh):
    step, arrays = state["step"], {name: tree for name, tree in state.items() if name != "step"}
    return {**sharding.ParameterLayout(mesh, threshold=0).abstract(arrays), "step": np.asarray(step)}


def _same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert np.asarray(a).dtype == np.asarray(b).dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("config", [MeshConfig(data=2, fsdp=2), MeshConfig(data=1)], ids=["2x2", "one"])
def test_restores_onto_another_mesh(tmp_path, config):
    state = _state(3, sharding.make_mesh(MeshConfig(data=1, fsdp=8)))
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.save(3, state, metadata={"stage": "drm", "seconds": 1.5})
        assert checkpoints.save(3, state) is False
    mesh = sharding.make_mesh(config, jax.devices()[: config.data * config.fsdp])
    wanted = _abstract(state, mesh)
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(checkpoints.latest(), wanted)
        donated = checkpoints.restore(checkpoints.latest(), wanted).state["trainable"]
    _same(restored.state, state)
    assert restored.metadata == {"stage": "drm", "seconds": 1.5}
    assert restored.note is None
    for leaf, like in zip(jax.tree.leaves(restored.state), jax.tree.leaves(wanted), strict=True):
        if isinstance(leaf, jax.Array):
            assert leaf.sharding == like.sharding
    jax.jit(lambda tree: jax.tree.map(lambda x: 2 * x, tree), donate_argnums=0)(donated)
    assert all(leaf.is_deleted() for leaf in donated.values())


def test_params_come_back_without_optimizer_or_mesh(tmp_path):
    state = _state(1, sharding.make_mesh(MeshConfig(data=1, fsdp=8)))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
    checkpoints = Checkpoints(tmp_path, read_only=True)
    params = checkpoints.restore_params_only(1, "ema")
    assert all(isinstance(value, np.ndarray) for value in params.values())
    _same(params, state["ema"])
    with pytest.raises(CheckpointError, match="has no 'critic'; it has ema, opt_state, step, trainable"):
        checkpoints.restore_params_only(1, "critic")
    checkpoints.close()
    with pytest.raises(FileNotFoundError, match="no checkpoints at"):
        Checkpoints(tmp_path / "nowhere", read_only=True)


def test_what_was_saved_is_the_state_at_the_time_although_it_is_donated_at_once(tmp_path):
    values = {"w": jnp.zeros((512, 512)), "b": jnp.zeros(3)}
    update = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    with Checkpoints(tmp_path, keep=5) as checkpoints:
        for step in range(1, 6):
            values = update(values)
            checkpoints.save(step, {"trainable": values})
            for _ in range(3):
                values = update(values)
        checkpoints.wait()
        for step in range(1, 6):
            for value in checkpoints.restore_params_only(step, "trainable").values():
                np.testing.assert_array_equal(value, 4 * step - 3)


def test_keeps_the_newest_and_the_best(tmp_path):
    scores = {1: 20.0, 2: 29.0, 3: None, 4: 25.0, 5: float("nan"), 6: 21.0}
    with Checkpoints(tmp_path, keep=2, keep_best=1, best_metric="psnr") as checkpoints:
        for step, psnr in scores.items():
            metrics = None if psnr is None else {"psnr": psnr, "ssim": 0.5}
            checkpoints.save(step, {"trainable": {"w": jnp.ones(2)}}, metrics=metrics)
        checkpoints.wait()
        assert checkpoints.steps() == [2, 5, 6]
    with Checkpoints(tmp_path, keep=2, keep_best=1, best_metric="psnr") as checkpoints:
        assert (checkpoints.best(), checkpoints.latest()) == (2, 6)
        assert checkpoints.metrics(2) == {"psnr": 29.0, "ssim": 0.5}
        checkpoints.save(7, {"trainable": {"w": jnp.ones(2)}}, metrics={"psnr": 30.0})
        checkpoints.wait()
        assert (checkpoints.steps(), checkpoints.best()) == ([6, 7], 7)
        assert checkpoints.save(7, {"trainable": {"w": 2 * jnp.ones(2)}}, metrics={"psnr": 1.0}, force=True)
        checkpoints.wait()
        np.testing.assert_array_equal(checkpoints.restore_params_only(7, "trainable")["w"], 2)
        assert checkpoints.best() == 6


def test_states_that_do_not_fit_are_refused_by_name(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        values = {"a": jnp.ones((4, 2)), "b": jnp.ones(3), "c": jnp.ones(1)}
        checkpoints.save(1, {"trainable": values})
        checkpoints.wait()
        wrong = {"a": jnp.ones((4, 3)), "b": jnp.ones(3, jnp.bfloat16), "d": jnp.ones(1)}
        with pytest.raises(CheckpointError) as caught:
            checkpoints.restore(1, {"trainable": wrong})
        message = ["d is missing", "c is unexpected", "a is float32(4, 2), expected float32(4, 3)"]
        message.append("b is float32(3,), expected bfloat16(3,)")
        assert str(caught.value).endswith("does not fit this run: " + "; ".join(message))
        with pytest.raises(CheckpointError, match=r"no complete checkpoint 2; it has \[1\]"):
            checkpoints.restore(2, {"trainable": values})


def test_half_written_directories_are_never_chosen(tmp_path):
    values = {"trainable": {"w": jnp.ones((4, 2))}, "ema": {"w": jnp.ones((4, 2))}}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, values)
    (tmp_path / "2").mkdir()
    shutil.copytree(tmp_path / "1", tmp_path / "3")
    (tmp_path / "3" / "_CHECKPOINT_METADATA").unlink()
    shutil.copytree(tmp_path / "1", tmp_path / "4")
    shutil.rmtree(tmp_path / "4" / "ema")
    shutil.copytree(tmp_path / "1", tmp_path / "5.orbax-checkpoint-tmp")
    assert Checkpoints(tmp_path, read_only=True).latest() == 1
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [1]
        assert checkpoints.save(3, values)
        checkpoints.wait()
        assert checkpoints.steps() == [1, 3]
        np.testing.assert_array_equal(checkpoints.restore_params_only(3, "ema")["w"], 1)
    assert not (tmp_path / "5.orbax-checkpoint-tmp").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "3"]


def test_a_replacement_that_was_interrupted_loses_nothing(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, {"trainable": {"w": jnp.full(2, step)}})
    (tmp_path / "2").rename(tmp_path / "2.replaced")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 2
        np.testing.assert_array_equal(checkpoints.restore_params_only(2, "trainable")["w"], 2)
    shutil.copytree(tmp_path / "1", tmp_path / "2.replaced")
    Checkpoints(tmp_path).close()
    assert sorted(os.listdir(tmp_path)) == ["1", "2"]


def test_a_killed_run_leaves_complete_checkpoints(tmp_path):
    code = """
        import sys
        import jax.numpy as jnp
        from mperceiver_jax.checkpoints.manager import Checkpoints
        checkpoints = Checkpoints(sys.argv[1], keep=2)
        for step in range(int(sys.argv[2]), 10**6):
            tree = {f"w{i}": jnp.full((256, 256), step + i, jnp.float32) for i in range(8)}
            checkpoints.save(step, {"trainable": tree})
            print(step, flush=True)
    """
    last = 0
    for lines in (2, 5):
        command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path), str(last + 1)]
        child = subprocess.Popen(command, env=environment(1), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        printed = [int(child.stdout.readline()) for _ in range(lines)]
        time.sleep(0.003 * lines)
        child.send_signal(signal.SIGKILL)
        child.wait()
        with Checkpoints(tmp_path, keep=2) as checkpoints:
            last = checkpoints.latest()
            # Of the saves that returned only the last one may have been under way.
            assert last >= printed[-1] - 1
            for step in checkpoints.steps():
                params = checkpoints.restore_params_only(step, "trainable")
                assert len(params) == 8
                for name, value in params.items():
                    np.testing.assert_array_equal(value, step + int(name[1:]))


FULL_DISK = """
    import resource, sys
    import jax, jax.numpy as jnp
    from mperceiver_jax.checkpoints.manager import CheckpointError, Checkpoints
    checkpoints = Checkpoints(sys.argv[1], keep=1, asynchronous=sys.argv[2] == "async")
    values = {"w": jax.random.normal(jax.random.key(0), (512, 512))}
    checkpoints.save(1, {"trainable": values})
    checkpoints.wait()
    # Writing more than this to any file fails from now on, as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    try:
        checkpoints.save(2, {"trainable": values})
        checkpoints.wait()
        print("saved")
    except CheckpointError as error:
        print(error)
    print(checkpoints.steps(), checkpoints.latest())
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    checkpoints.save(2, {"trainable": values})
    checkpoints.close()
    print(checkpoints.steps())
"""


@pytest.mark.parametrize("mode", ["async", "sync"])
def test_a_full_disk_is_reported_and_leaves_the_earlier_checkpoint(tmp_path, mode):
    command = [sys.executable, "-c", textwrap.dedent(FULL_DISK), str(tmp_path), mode]
    run = subprocess.run(command, env=environment(1), capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stderr[-3000:]
    message, steps, afterwards = run.stdout.splitlines()
    assert message.startswith(f"cannot save checkpoint 2 in {tmp_path}: ")
    assert message.endswith(": File too large. Complete checkpoints there: [1]")
    assert (steps, afterwards) == ("[1] 1", "[2]")


def test_a_directory_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=f"cannot keep checkpoints in {tmp_path / 'file'}"):
        Checkpoints(tmp_path / "file")
    checkpoints = Checkpoints(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "run").write_text("")
    with pytest.raises(CheckpointError, match=f"cannot save checkpoint 1 in {tmp_path / 'run'}"):
        checkpoints.save(1, {"trainable": {"w": jnp.ones(2)}})
        checkpoints.wait()


def _numbers():
    dataset = grain.MapDataset.range(20).seed(1).shuffle().repeat(None).batch(4).to_iter_dataset()
    return iter(dataset)


def test_data_continues_exactly(tmp_path):
    iterator = _numbers()
    for _ in range(7):
        next(iterator)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(7, {"trainable": {"w": jnp.ones(2)}}, data_iterator=iterator)
        checkpoints.wait()
        expected = [next(iterator).tolist() for _ in range(4)]
        again = _numbers()
        assert checkpoints.restore(7, {}, data_iterator=again).note is None
        assert [next(again).tolist() for _ in range(4)] == expected
        checkpoints.save(8, {"trainable": {"w": jnp.ones(2)}})
        checkpoints.wait()
        with pytest.raises(CheckpointError, match="holds no position in the data"):
            checkpoints.restore(8, {}, data_iterator=again)


def test_data_of_another_number_of_processes(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(7, {"trainable": {"w": jnp.ones(2)}}, data_iterator=_numbers())
        checkpoints.wait()
        record = tmp_path / "7" / "record" / "metadata"
        content = json.loads(record.read_text())
        reference = _numbers()
        for _ in range(7):
            next(reference)
        position = reference.get_state()
        record.write_text(json.dumps({**content, "iterators": [{"json": position}] * 2}))
        iterator = _numbers()
        note = checkpoints.restore(7, {}, data_iterator=iterator).note
        assert "written by 2 processes, now there are 1" in note
        assert next(iterator).tolist() == next(reference).tolist()
        record.write_text(json.dumps({**content, "iterators": [{"json": position}, {"json": {}}]}))
        with pytest.raises(CheckpointError, match="resume with 2 processes"):
            checkpoints.restore(7, {}, data_iterator=iterator)


TWO_PROCESSES = """
    import sys
    import jax, numpy as np
    from mperceiver_jax.distributed import sharding
    from mperceiver_jax.checkpoints.manager import Checkpoints
    from mperceiver_jax.checkpoints.fingerprint import fingerprint
    from mperceiver_jax.checkpoints.workdir import bind_workdir

    class Position:
        def __init__(self): self.state = None
        def get_state(self): return {"process": jax.process_index(), "seen": "x" * (1 + jax.process_index())}
        def set_state(self, state): self.state = state

    assert jax.process_count() == 2 and jax.device_count() == 8
    workdir = sys.argv[1]
    bind_workdir(workdir, {"seed": 0})
    try:
        bind_workdir(workdir, {"seed": 1})
    except ValueError as error:
        assert "seed: 0 there, 1 here" in str(error)
    else:
        raise AssertionError("not refused")
    mesh = sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=4))
    index, count = sharding.data_share(mesh)
    batch = sharding.to_global(mesh, {"x": np.arange(4, dtype=np.float32).reshape(4, 1) + 4 * index})
    assert float(jax.jit(lambda b: (b["x"][:, 0] * np.arange(8)).sum())(batch)) == 140.0
    mesh = sharding.make_mesh(sharding.MeshConfig(data=1, fsdp=8))
    host = {"a.weight": np.arange(128, dtype=np.float32).reshape(16, 8), "a.bias": np.ones(3, np.float32)}
    params = sharding.ParameterLayout(mesh, threshold=0).place_all(host)
    with Checkpoints(workdir + "/checkpoints", keep=1) as checkpoints:
        for step in (1, 2):
            state = {"trainable": params, "step": step}
            checkpoints.save(step, state, Position(), {"frozen_fingerprint": fingerprint(params)})
        checkpoints.save(2, state, Position(), {"frozen_fingerprint": fingerprint(params)}, force=True)
        checkpoints.wait()
        assert checkpoints.steps() == [2]
        position = Position()
        restored = checkpoints.restore(2, {"trainable": params, "step": 0}, position)
        assert position.state == position.get_state() and restored.note is None
        assert restored.state["trainable"]["a.weight"].sharding == params["a.weight"].sharding
    print(index, count, fingerprint(restored.state["trainable"]))
"""


def test_two_processes_save_and_one_restores(tmp_path):
    outputs = run_processes(TWO_PROCESSES, args=[tmp_path / "run"])
    host = {"a.weight": np.arange(128, dtype=np.float32).reshape(16, 8), "a.bias": np.ones(3, np.float32)}
    assert [output.split() for output in outputs] == [[str(i), "2", fingerprint(host)] for i in range(2)]
    assert os.listdir(tmp_path / "run" / "checkpoints") == ["2"]
    with Checkpoints(tmp_path / "run" / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.metadata(2) == {"frozen_fingerprint": fingerprint(host)}
        _same(checkpoints.restore_params_only(2, "trainable"), host)
        placed = sharding.ParameterLayout(sharding.make_mesh(MeshConfig(data=1), jax.devices()[:1])).place_all(host)
        _same(checkpoints.restore(2, {"trainable": placed}).state["trainable"], host)
