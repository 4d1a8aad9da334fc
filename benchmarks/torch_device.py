"""PyTorch where JAX computes. Imports torch."""

import jax
import torch


def unusable() -> str | None:
    """Why PyTorch cannot compute where JAX does; None where it can."""
    platform = jax.default_backend()
    if platform == "cpu" or (platform == "gpu" and torch.cuda.is_available()):
        return None
    return f"no comparison with PyTorch: it has no device for {platform!r} here"


def device_like_ours() -> str:
    """`cuda` or `cpu`, with the precision of products that JAX has there by default (TF32 on GPUs).

    Raises:
        ValueError: PyTorch has no such device here.
    """
    if reason := unusable():
        raise ValueError(reason)
    if jax.default_backend() == "cpu":
        return "cpu"
    torch.set_float32_matmul_precision("high")
    return "cuda"


def wait() -> None:
    """Until the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
