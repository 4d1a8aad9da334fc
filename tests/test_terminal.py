"""Names that users or files give reach the terminal as escapes, in every command."""

from collections.abc import Callable

import pytest

from data_pipelines import prepare, preview, throughput
from mperceiver_jax.convert.__main__ import main as convert
from mperceiver_jax.evaluate.__main__ import main as evaluate
from mperceiver_jax.restore.__main__ import main as restore

NAME = "gone\x1b[2J"

COMMANDS = {
    "restore": (restore, [NAME, "--output={folder}"]),
    "evaluate": (evaluate, ["--protocol=promptir-3task", f"--data={NAME}", "--output={folder}", "--checkpoint=base"]),
    "convert": (convert, ["inspect", NAME]),
    "prepare": (prepare.main, ["verify", NAME]),
    "preview": (preview.main, ["--images", NAME, "--output", "{folder}/sheet.png"]),
    "throughput": (throughput.main, ["--images", NAME]),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_an_escape_in_a_name_does_not_reach_the_terminal(name, tmp_path, capsys):
    run: Callable[[list[str]], int | None]
    run, arguments = COMMANDS[name]
    try:
        status = run([argument.format(folder=tmp_path / "out") for argument in arguments])
    except SystemExit as end:
        status = end.code
    out, err = capsys.readouterr()
    assert status in (1, 2)
    assert "\x1b" not in out + err and "gone\\x1b[2J" in err
