"""The training command.

    python -m mperceiver_jax.main --config=configs/allinone.py[:small|:base|:sd21] [--workdir=DIR] [--config.X=Y ...]

Runs the stages of the configuration in order, evaluates each on held-out images, and
leaves report.json, report.md, samples/ and checkpoints in the workdir. The same command
continues an interrupted run where it stopped. With several hosts, start it on each of them. Published weights
that `config.pretrained` names are converted on first use.

    --config.stages.dual_branch.steps=2000      any field of the configuration, by its dotted name
    --config.mesh.fsdp=8                        divide large parameters over 8 devices
    --config=configs/fewshot.py:small --config.source=DIR      adapt a finished run to another task
    --config.stages.drm.steps=2000 --extend     train the last stage of a finished run further
    --config.on_nonfinite=skip                  skip a bounded number of non-finite updates
"""

import sys
from typing import Any

from absl import app, flags
from ml_collections import config_flags

import mperceiver_jax.interrupts  # noqa: F401  (before the imports that take seconds)
from data_pipelines.messages import print_line, printable
from mperceiver_jax.command_line import one_line, parse_flags, silence_library_logs
from mperceiver_jax.config.experiment import Experiment, from_mapping
from mperceiver_jax.convert.importer import pretrained_directory
from mperceiver_jax.distributed.runtime import end_interrupted, on_first_process, start_runtime
from mperceiver_jax.evaluate.heldout import HeldoutEvaluator
from mperceiver_jax.evaluate.run_report import write_run_report
from mperceiver_jax.training.adaptation import adapted
from mperceiver_jax.training.run import run_experiment

# Fields that the file does not mention can be set, too; `from_mapping` refuses fields that do not exist.
CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "The experiment, such as configs/allinone.py:small.",
    lock_config=False,
    accept_new_attributes=True,
)
WORKDIR = flags.DEFINE_string("workdir", None, "Directory for all output; the default is runs/<variant>.")
CACHE = flags.DEFINE_string("compilation_cache", None, "Directory of XLA's persistent compilation cache.")
EXTEND = flags.DEFINE_bool(
    "extend",
    False,
    "Train the last stages of the run further where --config.stages.NAME.steps has grown, although the learning rate "
    "depends on it: it continues on the schedule of the new length.",
)
DEBUG = flags.DEFINE_bool("debug", False, "Show the traceback of an error, not only its message.")
flags.mark_flag_as_required("config")


def main(arguments: list[str]) -> None:
    if len(arguments) > 1:
        sys.exit(f"error: unexpected argument {arguments[1]!r}; see --help")
    if not (DEBUG.value or flags.FLAGS["verbosity"].present):
        silence_library_logs()
    try:
        # Processes must join before a device is used.
        start_runtime(CACHE.value)
        mapping = _mapping()
        if "new_task" in mapping:
            mapping = adapted(mapping, WORKDIR.value)
        experiment = from_mapping(Experiment, mapping)
        if experiment.warning:
            on_first_process(lambda: print_line(f"warning: {experiment.warning}", error=True))
        workdir = WORKDIR.value or f"runs/{experiment.variant}"
        records = run_experiment(experiment, workdir, HeldoutEvaluator, pretrained_directory, EXTEND.value)
        if records is None:
            on_first_process(lambda: print("Stopped on request and saved; the same command continues the run."))
            return
        on_first_process(lambda: print(write_run_report(experiment, records, workdir)))
    except (ValueError, OSError, RuntimeError) as error:
        # These messages say what to do; a traceback would hide them.
        if DEBUG.value:
            raise
        sys.exit(printable(f"error: {error}"))
    except KeyboardInterrupt:
        end_interrupted("Interrupted; the same command continues from the last checkpoint.")


def _mapping() -> dict[str, Any]:
    try:
        return CONFIG.value.to_dict()
    except OSError as error:  # Only the first access to the flag reports a missing file.
        raise ValueError(one_line(error)) from error


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
