"""PyTorch tensors in and out, strictly.

    tensors = convert.read_torch("weights.safetensors")     # dict[str, np.ndarray]
    convert.load(module, tensors, layout="release")         # every key used, every parameter filled
    tensors = convert.dump(module, layout="release")        # the exact inverse

A *layout* is a family of key names and shapes for one kind of module (`layouts.py`).
The transposition between PyTorch's arrays and ours is declared by each parameter.
"""

from mperceiver_jax.convert.formats.torch_files import read_torch, write_safetensors
from mperceiver_jax.convert.state_dicts import dead_tensors, dump, from_torch, load, to_torch

__all__ = ["dead_tensors", "dump", "from_torch", "load", "read_torch", "to_torch", "write_safetensors"]
