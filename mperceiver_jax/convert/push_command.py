"""upload released weights to a repository of the Hugging Face hub

examples:
  what `convert release` wrote; the repository is created if it does not exist
    python -m mperceiver_jax.convert push released OWNER/NAME
  restore with it, on any machine
    python -m mperceiver_jax.restore photo.jpg --checkpoint=hf://OWNER/NAME --output=restored

Log in first with `hf auth login`, or set HF_TOKEN. HF_ENDPOINT names another server that speaks the same protocol.
"""

import argparse
from pathlib import Path

from mperceiver_jax.checkpoints.released import FILES, HUB, is_released
from mperceiver_jax.checkpoints.run_params import run_params
from mperceiver_jax.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="SOURCE", help="a folder of released weights")
    parser.add_argument("repository", metavar="OWNER/NAME", help="the repository")
    parser.add_argument("--private", action="store_true", help="create it as one that nobody else can read")
    parser.add_argument("--message", default="Released weights", help="of the commit (default: %(default)s)")


def run(arguments: argparse.Namespace) -> None:
    """Uploads; see `push`."""
    print(push(arguments.source, arguments.repository, arguments.private, arguments.message))


def push(folder: Path, repository: str, private: bool = False, message: str = "Released weights") -> str:
    """Uploads released weights in one commit, and returns its address.

    Raises:
        FileNotFoundError, ValueError: the folder holds no released weights, or they are damaged.
        ConfigError: the hub's client is not installed.
        OSError: the hub refuses or cannot be reached; says why.
    """
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ImportError as error:
        raise ConfigError("push: install the hub's client first: pip install mperceiver-jax[hub]") from error
    if not is_released(folder):
        raise FileNotFoundError(f"{folder}: no released weights; write some with `convert release`")
    run_params(folder)  # Damaged weights are not published.
    repository = repository.removeprefix(HUB)
    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository, folder_path=folder, allow_patterns=list(FILES), commit_message=message
        )
    except HFValidationError as error:
        raise ValueError(f"push: {error}") from error
    except HfHubHTTPError as error:
        raise OSError(f"push: {repository}: the hub refused: {error}") from error
    return str(commit.commit_url)
