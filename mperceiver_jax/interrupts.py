"""Ctrl-C ends a command wherever it arrives, without a traceback.

Commands import this module before those that take seconds to import.
"""

import os
import signal
import sys
import threading
from types import TracebackType

_AGAIN_AFTER = 0.05  # seconds


def _end_without_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("Interrupted.", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def _interrupt_again(unraisable: "sys.UnraisableHookArgs") -> None:
    """Repeats an interrupt that arrived where Python drops exceptions, as in JAX's hook of the garbage collector."""
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        # Not from here, where it would be dropped again.
        threading.Timer(_AGAIN_AFTER, os.kill, (os.getpid(), signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(unraisable)


sys.excepthook = _end_without_traceback
sys.unraisablehook = _interrupt_again
