"""write trained weights for PyTorch"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(arguments: argparse.Namespace) -> None:
    raise ValueError("being written")
