"""The training command.

    python -m mperceiver_jax.main --config=configs/allinone.py[:small|:sd21] [--workdir=DIR] [--config.X=Y ...]

Runs the stages of the configuration in order, evaluates each on held-out images, and
leaves report.json, report.md, samples/ and checkpoints in the workdir. The same command
continues an interrupted run where it stopped. On several hosts, start it on each of them.

    --config.stages.dual_branch.steps=2000      any field of the configuration, by its dotted name
    --config.mesh.fsdp=8                        large parameters divided over 8 devices
    --config=configs/fewshot.py:small --config.source=DIR      a finished run adapted to another task
    --config.on_nonfinite=skip                  pass over a bounded number of non-finite updates
"""

import sys
from typing import Any

from absl import app, flags
from ml_collections import config_flags

from mperceiver_jax.command_line import one_line, parse_flags, silence_library_logs
from mperceiver_jax.config.experiment import Experiment, from_mapping
from mperceiver_jax.distributed.runtime import on_first_process, start_runtime
from mperceiver_jax.evaluate.heldout import HeldoutEvaluator
from mperceiver_jax.evaluate.run_report import write_run_report
from mperceiver_jax.training.adaptation import adapted
from mperceiver_jax.training.run import run_experiment

# Fields that the file leaves to their defaults can be set too; `from_mapping` refuses those that do not exist.
CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "The experiment, such as configs/allinone.py:small.",
    lock_config=False,
    accept_new_attributes=True,
)
WORKDIR = flags.DEFINE_string("workdir", None, "Where everything goes; runs/<variant> without it.")
CACHE = flags.DEFINE_string("compilation_cache", None, "Directory of XLA's persistent compilation cache.")
DEBUG = flags.DEFINE_bool("debug", False, "Show the trace of an error, not only its message.")
flags.mark_flag_as_required("config")


def main(arguments: list[str]) -> None:
    if len(arguments) > 1:
        sys.exit(f"error: unexpected argument {arguments[1]!r}; see --help")
    if not (DEBUG.value or flags.FLAGS["verbosity"].present):
        silence_library_logs()
    try:
        # Processes must join before anything asks for a device.
        start_runtime(CACHE.value)
        mapping = _mapping()
        if "source" in mapping:
            mapping = adapted(mapping, WORKDIR.value)
        experiment = from_mapping(Experiment, mapping)
        if experiment.warning:
            on_first_process(lambda: print(f"warning: {experiment.warning}", file=sys.stderr, flush=True))
        workdir = WORKDIR.value or f"runs/{experiment.variant}"
        records = run_experiment(experiment, workdir, HeldoutEvaluator)
        if records is None:
            on_first_process(lambda: print("Stopped as asked, and saved; the same command continues the run."))
            return
        on_first_process(lambda: print(write_run_report(experiment, records, workdir)))
    except (ValueError, OSError, RuntimeError) as error:
        # What can be foreseen comes as a sentence that says what to do; a trace would bury it.
        if DEBUG.value:
            raise
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("Interrupted; the same command continues from the last checkpoint.", file=sys.stderr)
        sys.exit(130)


def _mapping() -> dict[str, Any]:
    try:
        return CONFIG.value.to_dict()
    except OSError as error:  # The file is read when the flag is, but told only now that it is not there.
        raise ValueError(one_line(error)) from error


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
