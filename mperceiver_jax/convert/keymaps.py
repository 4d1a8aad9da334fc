"""Which PyTorch key holds which parameter: one table per network and layout.

A parameter's dotted path already follows the PyTorch names of its home library
(diffusers for the UNet and the autoencoder, OpenCLIP for the towers, the release for
what MPerceiver adds). A `KeyMap` renames paths into another family of keys; since the
renaming is one to one, the same table serves both directions.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flax import nnx

Rules = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class KeyMap:
    """How one family of checkpoints names the parameters of one module.

    Attributes:
        prefixes: (ours, theirs) beginnings of a path, tried in order; the first that fits is replaced.
        inner: (regex, replacement) rules applied one after another to the whole result.
        one_by_one: regex of *our* paths of linears that the family stores as 1x1 convolutions,
            with the number of size-1 axes behind the weight.
        ignorable: regex of *their* keys that carry nothing (schedule buffers, mask buffers).
    """

    prefixes: Rules = ()
    inner: Rules = ()
    one_by_one: tuple[str, int] = ("(?!)", 0)
    ignorable: str = "(?!)"

    def key(self, path: str) -> str:
        for ours, theirs in self.prefixes:
            if path == ours or path.startswith(ours + "."):
                path = theirs + path[len(ours) :]
                break
        for pattern, replacement in self.inner:
            path = re.sub(pattern, replacement, path)
        return path

    def trailing_axes(self, path: str) -> int:
        pattern, axes = self.one_by_one
        return axes if re.search(pattern, path) else 0

    def ignored(self, key: str) -> bool:
        return re.search(self.ignorable, key) is not None


KEYMAPS: dict[tuple[str, str], Callable[[nnx.Module], KeyMap]] = {}
"""(class name, layout) -> the map for an instance of that class."""


def keymap(module: nnx.Module, layout: str) -> KeyMap:
    """The map of a module's class for a layout.

    Raises:
        ValueError: no such layout for this class; the message lists those there are.
    """
    name = type(module).__name__
    if (name, layout) not in KEYMAPS:
        known = sorted(other for cls, other in KEYMAPS if cls == name)
        raise ValueError(f"{name} has no layout {layout!r}; known: {known}")
    return KEYMAPS[name, layout](module)
