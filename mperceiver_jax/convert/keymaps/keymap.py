"""Which PyTorch key holds which parameter: the form of the tables.

A parameter's dotted path already follows the PyTorch names of its home library
(diffusers for the UNet and the autoencoder, OpenCLIP for the towers, the release for
what MPerceiver adds). A `KeyMap` renames paths into another family of keys; since the
renaming is one to one, the same table serves both directions.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mperceiver_jax.models.parameters import Kind

Rules = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class KeyMap:
    """How one family of checkpoints names the parameters of one module.

    Attributes:
        prefixes: (ours, theirs) beginnings of a path, tried in order; the first that fits is replaced.
        inner: (regex, replacement) rules applied one after another to the whole result.
        one_by_one: regex of *our* paths of linears that the family stores as 1x1 convolutions,
            with the number of size-1 axes behind the weight.
        transposed: regex of *our* paths of plain matrices that the family stores transposed, as linears.
        stacked: (name, parts): a key that contains `name` stands for one key per part, whose tensors are
            the outputs of ours in this order.
        aliases: (regex, replacement) rules that bring other spellings of *their* keys to the one above
            when reading; writing always uses the one above.
        ignorable: regex of *their* keys that carry nothing for this module (buffers, the other tower).
        dead: *their* keys, with shapes, that the original module declares and never uses. They are no
            parameters of ours; a file holds all of them or none, and what is read is written back.
        buffers: *their* keys, with values, of tensors that the original module keeps in addition to parameters and
            what follows from sizes alone (tables of indices, masks). A file may hold them or not; writing
            gives back what was read, else these.
    """

    prefixes: Rules = ()
    inner: Rules = ()
    one_by_one: tuple[str, int] = ("(?!)", 0)
    transposed: str = "(?!)"
    stacked: tuple[str, tuple[str, ...]] | None = None
    aliases: Rules = ()
    ignorable: str = "(?!)"
    dead: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    buffers: Mapping[str, np.ndarray] = field(default_factory=dict)

    def key(self, path: str) -> str:
        for ours, theirs in self.prefixes:
            if path == ours or path.startswith(ours + "."):
                path = theirs + path[len(ours) :]
                break
        for pattern, replacement in self.inner:
            path = re.sub(pattern, replacement, path)
        return path

    def keys(self, path: str) -> tuple[str, ...]:
        """The keys that together hold a parameter: one, or the parts of a stack."""
        key = self.key(path)
        if self.stacked is None or self.stacked[0] not in key:
            return (key,)
        name, parts = self.stacked
        return tuple(key.replace(name, part) for part in parts)

    def kind(self, path: str, declared: Kind) -> Kind:
        """How the family's array relates to ours (see `parameters.parameter`)."""
        return "linear" if re.search(self.transposed, path) else declared

    def canonical(self, key: str) -> str:
        """The spelling that `key` and `keys` produce, for one that the aliases know."""
        for pattern, replacement in self.aliases:
            key = re.sub(pattern, replacement, key)
        return key

    def trailing_axes(self, path: str) -> int:
        pattern, axes = self.one_by_one
        return axes if re.search(pattern, path) else 0

    def ignored(self, key: str) -> bool:
        return re.search(self.ignorable, key) is not None


@dataclass(frozen=True)
class AssemblyMap:
    """The same for a module made of others: each part by its own map, behind a prefix of the family's.

    Attributes:
        parts: attribute of the module -> (what stands before the part's keys, the part's map).
        aliases, ignorable: as in `KeyMap`, on whole keys; tried before those of the parts.
    """

    parts: Mapping[str, tuple[str, KeyMap]]
    aliases: Rules = ()
    ignorable: str = "(?!)"

    @property
    def dead(self) -> dict[str, tuple[int, ...]]:
        """Those of the parts, behind their prefixes."""
        return {prefix + key: shape for prefix, part in self.parts.values() for key, shape in part.dead.items()}

    @property
    def buffers(self) -> dict[str, np.ndarray]:
        """Those of the parts, behind their prefixes."""
        return {prefix + key: value for prefix, part in self.parts.values() for key, value in part.buffers.items()}

    def keys(self, path: str) -> tuple[str, ...]:
        theirs, part, inner = self._part(path)
        return tuple(theirs + key for key in part.keys(inner))

    def kind(self, path: str, declared: Kind) -> Kind:
        _, part, inner = self._part(path)
        return part.kind(inner, declared)

    def trailing_axes(self, path: str) -> int:
        _, part, inner = self._part(path)
        return part.trailing_axes(inner)

    def canonical(self, key: str) -> str:
        for pattern, replacement in self.aliases:
            key = re.sub(pattern, replacement, key)
        for theirs, part in self.parts.values():
            if key.startswith(theirs):
                return theirs + part.canonical(key[len(theirs) :])
        return key

    def ignored(self, key: str) -> bool:
        inside = (part.ignored(key[len(t) :]) for t, part in self.parts.values() if key.startswith(t))
        return re.search(self.ignorable, key) is not None or any(inside)

    def _part(self, path: str) -> tuple[str, KeyMap, str]:
        """(prefix, map, path within the part); a path without a dot is a parameter of the assembly itself."""
        name, dot, inner = path.partition(".")
        if not dot:
            return "", KeyMap(), path
        theirs, part = self.parts[name]
        return theirs, part, inner
