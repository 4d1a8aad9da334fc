"""The conversion command: published weights in, PyTorch weights out. `python -m mperceiver_jax.convert --help`."""

import argparse
import sys
from collections.abc import Sequence

import mperceiver_jax.interrupts  # noqa: F401  (before the imports that take seconds)
from data_pipelines.messages import print_line
from mperceiver_jax.command_line import one_line, silence_library_logs
from mperceiver_jax.convert import (
    export_command,
    import_command,
    inspect_command,
    push_command,
    release_command,
    words_command,
)
from mperceiver_jax.convert.model_config import overrides_among

COMMANDS = {
    "import": import_command,
    "export": export_command,
    "release": release_command,
    "push": push_command,
    "inspect": inspect_command,
    "words": words_command,
}

EPILOG = """\
python -m mperceiver_jax.convert COMMAND --help shows a command's options, with examples.

Nothing that is read can run code: PyTorch's .ckpt, .bin, .pt and .pth files are opened for their tensors only.

exit status: 0 done; 1 the conversion failed, the message says why and nothing is left behind; 2 wrong arguments.
"""


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m mperceiver_jax.convert",
        description="Exchange weights with PyTorch: bring published models in, take trained ones out, look into files.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = result.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        summary, _, examples = (module.__doc__ or "").partition("\n\n")
        command = commands.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    reader = parser()
    options, unknown = reader.parse_known_args(arguments)
    options.overrides, wrong = overrides_among(unknown)
    if wrong:
        reader.error(f"unrecognized arguments: {' '.join(wrong)}")
    silence_library_logs()
    try:
        COMMANDS[options.command].run(options)
    except (OSError, ValueError, RuntimeError, MemoryError) as error:
        print_line(f"{options.command}: {one_line(error)}", error=True)
        return 1
    except KeyboardInterrupt:
        print(f"{options.command}: interrupted; what is written is complete", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
