"""Compares a restorer by regression with the PyTorch network it came from: the same weights, in one run. Imports torch.

No package ships these networks, so the user names one on the import path: `IMPORT.PATH:NAME`, a class or a
function that returns a module, optionally called with literals: `net.model:PromptIR(decoder=True)`.
"""

import ast
import copy
import functools
import importlib
import re
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks.systems import System, random_images, sized
from benchmarks.timing import Candidate, compiled, measure
from benchmarks.torch_device import device_like_ours, wait
from mperceiver_jax.config.experiment import Experiment
from mperceiver_jax.convert.restorer_checkpoints import NETWORK, state_dict
from mperceiver_jax.models import parameters
from mperceiver_jax.models.restorers.am_promptir import AMPromptIR
from mperceiver_jax.models.restorers.condition_weights import weights_of_labels
from mperceiver_jax.models.restorers.mioir.prompting import Prompted
from mperceiver_jax.models.restorers.pip import PIP
from mperceiver_jax.models.restorers.registry import RegressionConfig, RegressionModel, word_vectors
from mperceiver_jax.optim.optimizer import OptimizerConfig

# Of the largest output. Rounding of products to TF32 or bfloat16 stays below; another network does not.
TOLERANCE = {"float32": 1e-2, "bfloat16": 0.2}
# What AM-PromptIR's release calls its classes, where that is not a task's name.
WORDS = {"dehaze": "dehazy", "denoise": "denoise_25"}


@dataclass(frozen=True)
class Origin:
    """Where a PyTorch network is found, and what it is called with."""

    module: str
    name: str
    arguments: tuple[Any, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> "Origin":
        """From `IMPORT.PATH:NAME` or `IMPORT.PATH:NAME(LITERAL, ..., OPTION=LITERAL, ...)`.

        Raises:
            ValueError: it is something else.
        """
        found = re.fullmatch(r"([\w.]+):(\w+)(\(.*\))?", text)
        if not found:
            raise ValueError(f"{text!r} is not IMPORT.PATH:NAME or IMPORT.PATH:NAME(OPTION=VALUE, ...)")
        try:
            call = ast.parse(f"called{found[3] or '()'}", mode="eval").body
            assert isinstance(call, ast.Call)
            options = {str(one.arg): ast.literal_eval(one.value) for one in call.keywords}
            return cls(found[1], found[2], tuple(ast.literal_eval(one) for one in call.args), options)
        except (SyntaxError, ValueError, AssertionError):
            raise ValueError(
                f"{text!r}: numbers, strings, True, None, lists and so on are all it can be given"
            ) from None

    def build(self) -> torch.nn.Module:
        """The network.

        Raises:
            ValueError: it cannot be imported or made, or is no module.
        """
        try:
            found = getattr(importlib.import_module(self.module), self.name)(*self.arguments, **self.options)
        except Exception as error:  # it is anybody's code
            reason = (str(error).splitlines() or [""])[0]
            raise ValueError(f"{self}: {type(error).__name__}: {reason} (is it on PYTHONPATH?)") from error
        if not isinstance(found, torch.nn.Module):
            raise ValueError(f"{self} gives no torch.nn.Module but a {type(found).__name__}")
        return found

    def __str__(self) -> str:
        return f"--torch {self.module}:{self.name}"


def compare_with_torch(origin: Origin, experiment: Experiment, size: int, batch: int, repeats: int) -> dict[str, float]:
    """Columns of a row: PyTorch's time over ours, and how far outputs are apart, relative to the largest.

    On both sides the network alone, with the true tasks as condition, is run and trained by L1 and AdamW in the
    configuration's dtype. Ours also sees that nothing becomes infinite. PyTorch's is eager.

    Raises:
        ValueError: the network cannot be had, has other tensors, or computes something else.
    """
    if not isinstance(experiment.model, RegressionConfig):
        raise ValueError(f"{origin}: {experiment.title} is no restorer by regression; see benchmarks.unet")
    device = device_like_ours()
    system = System(_alone(experiment, experiment.model, size, batch))
    model = system.model
    assert isinstance(model, RegressionModel)
    if size % model.multiple:
        raise ValueError(f"--size: {origin} needs a multiple of {model.multiple}, not {size}")
    network = origin.build()
    _load(origin, network, state_dict(model, system.values, NETWORK), experiment.title)
    lq, structure = random_images(size, batch), parameters.split(model)[0]
    labels = np.arange(batch) % len(model.config.tasks)
    weights, kind = weights_of_labels(jnp.asarray(labels), len(model.config.tasks)), experiment.compute_dtype

    def forward(values: Any, lq: jax.Array) -> jax.Array:
        return parameters.merge(structure, values)(lq.astype(kind), weights)

    ours = {
        "forward": compiled(forward, system.values, jnp.asarray(lq), flop=0.0, images=batch),
        "training": system.training_step("regression"),
    }
    theirs = _Theirs(network.to(device), _conditions(model, lq, labels), lq, device, kind)
    expected = np.asarray(ours["forward"].run().astype(jnp.float32))
    found = theirs.output()
    if found.shape != expected.shape:
        raise ValueError(f"{origin}: gives images of shape {found.shape}, ours {expected.shape} (b, h, w, c)")
    off = float(np.abs(found - expected).max() / np.abs(expected).max())
    if not off < TOLERANCE[kind]:
        raise ValueError(f"{origin}: its outputs and ours, of the same weights, differ by {off:.2g} of the largest")
    made = theirs.candidates(system.experiment.stages["regression"].optimizer)
    results = measure(ours | made, repeats=repeats, warm_up=1)
    return {
        f"PyTorch's time / ours, {way}": results[f"torch {way}"]["seconds"] / results[way]["seconds"] for way in ours
    } | {"PyTorch's outputs differ by": off}


def _alone(experiment: Experiment, config: RegressionConfig, size: int, batch: int) -> Experiment:
    """The network without a classifier, trained by what both sides have."""
    experiment = sized(experiment, size, batch)
    stage = experiment.stages["regression"]
    same = {name: getattr(stage.optimizer, name) for name in ("learning_rate", "betas", "eps", "weight_decay")}
    stage = replace(stage, ema_decay=0.0, optimizer=OptimizerConfig(**same))
    return replace(
        experiment,
        model=replace(config, condition_source="label"),
        losses=replace(experiment.losses, regression="l1", regularizer_weight=0.0),
        stages={"regression": stage},
    )


def _conditions(model: RegressionModel, lq: np.ndarray, labels: np.ndarray) -> list[Any]:
    """The arguments of a network after the images, as its release takes them."""
    network, config = model.network, model.config
    weights = weights_of_labels(jnp.asarray(labels), len(config.tasks))
    if isinstance(network, Prompted) and network.kind != "plain":
        return [_planes(np.asarray(network.guide(jnp.asarray(lq), weights)))]
    if isinstance(network, PIP):
        return [torch.tensor(np.asarray(weights))]
    if isinstance(network, AMPromptIR):
        if config.network.text_path == "release":
            names = [config.tasks[label] for label in labels]
            return [[WORDS.get(name, name) for name in names]]
        return [torch.tensor(word_vectors(config.words, config.tasks, config.network.text_width)[labels])]
    return []


def _load(origin: Origin, network: torch.nn.Module, state: dict[str, np.ndarray], title: str) -> None:
    """Puts our weights into a network, all of them into all of its."""
    own = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    shared = own.keys() & state.keys()
    wrong = {
        "it lacks": sorted(state.keys() - shared),
        "only it has": sorted(own.keys() - shared),
        "of another shape": sorted(key for key in shared if own[key] != state[key].shape),
    }
    if any(wrong.values()):
        problems = "; ".join(
            f"{len(keys)} {what}: {', '.join(keys[:3])}{' ...' * (len(keys) > 3)}"
            for what, keys in wrong.items()
            if keys
        )
        raise ValueError(f"{origin}: its tensors are not {title}'s of this configuration. {problems}")
    network.load_state_dict({key: torch.tensor(value) for key, value in state.items()}, strict=True)


def _planes(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.moveaxis(images, -1, 1).copy())


class _Theirs:
    """The PyTorch network at work. Modules may return a tuple; its first item is the image."""

    def __init__(self, network: torch.nn.Module, conditions: list[Any], lq: np.ndarray, device: str, dtype: str):
        # Two, for neither may switch between the ways while it is timed: one restores, one is trained.
        self._network, self._trained = network.eval(), copy.deepcopy(network).train()
        on_device = lambda value: value.to(device) if isinstance(value, torch.Tensor) else value
        self._inputs = [on_device(value) for value in (_planes(lq), *conditions)]
        self._gt = torch.rand_like(self._inputs[0])
        kind = getattr(torch, dtype)
        self._cast = functools.partial(torch.autocast, device, dtype=kind, enabled=kind != torch.float32)

    def output(self) -> np.ndarray:
        """(batch, height, width, channels) float32."""
        return np.moveaxis(self._forward().float().cpu().numpy(), 1, -1)

    def candidates(self, optimizer: OptimizerConfig) -> dict[str, Candidate]:
        """What to time."""
        adamw = torch.optim.AdamW(
            self._trained.parameters(),
            lr=optimizer.learning_rate,
            betas=(optimizer.betas[0], optimizer.betas[1]),
            eps=optimizer.eps,
            weight_decay=optimizer.weight_decay,
        )
        return {
            "torch forward": Candidate(self._timed_forward),
            "torch training": Candidate(functools.partial(self._update, adamw)),
        }

    def _forward(self) -> torch.Tensor:
        with torch.no_grad(), self._cast():
            return self._image(self._network(*self._inputs))

    def _timed_forward(self) -> None:
        self._forward()
        wait()

    def _update(self, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad(set_to_none=True)
        with self._cast():
            out = self._image(self._trained(*self._inputs))
        (out.float() - self._gt).abs().mean().backward()
        optimizer.step()
        wait()

    def _image(self, out: Any) -> torch.Tensor:
        return out[0] if isinstance(out, (tuple, list)) else out
