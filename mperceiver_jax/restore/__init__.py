"""Restoring images with a trained model, from the command line or from Python.

from mperceiver_jax import restore
restorer = restore.Restorer.from_pretrained("base")
restored = restorer(image)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mperceiver_jax.restore.restorer import Restoration, Restorer
    from mperceiver_jax.restore.settings import RestoreSettings

__all__ = ["Restoration", "RestoreSettings", "Restorer"]


def __getattr__(name: str) -> Any:
    # Only when asked for: `image_files` and `colour` are used where no model is.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mperceiver_jax.restore import restorer, settings

    return getattr(settings if name == "RestoreSettings" else restorer, name)
