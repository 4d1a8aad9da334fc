"""The command line that the benchmarks share, and what they print and write."""

import argparse
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks.subject import Subject, subject
from benchmarks.timing import peak_memory
from data_pipelines.files import write_atomically

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "diffusers")


def parser(name: str, description: str, examples: str) -> argparse.ArgumentParser:
    """The arguments that all benchmarks take."""
    result = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        epilog="examples:\n" + examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("--variant", choices=("small", "sd21"), default="small", help="sizes (default: %(default)s)")
    result.add_argument("--size", type=int, default=0, metavar="PIXELS", help="side of the images (small 48, sd21 512)")
    result.add_argument("--batch", type=int, default=0, metavar="N", help="images at a time (small 16, sd21 8)")
    result.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="", help="of the computation (small float32, sd21 bfloat16)"
    )
    result.add_argument("--repeats", type=int, default=10, metavar="N", help="rounds timed (default: %(default)s)")
    result.add_argument("--output", type=Path, metavar="FILE.json", help="also write everything there")
    return result


def subject_of(options: argparse.Namespace, **changes: Any) -> Subject:
    """The subject that the arguments name."""
    given = {"size": options.size, "batch": options.batch, "dtype": options.dtype} | changes
    return subject(options.variant, **given)


def run(name: str, benchmark: Any, arguments: Sequence[str] | None, options: argparse.ArgumentParser) -> int:
    """Parses, runs `benchmark(options) -> (subject, findings)`, prints and writes; returns the exit status."""
    parsed = options.parse_args(arguments)
    if parsed.repeats < 1:
        options.error("--repeats: at least 1")
    try:
        if parsed.output is not None and not parsed.output.parent.is_dir():
            raise ValueError(f"--output: there is no folder {parsed.output.parent}")
        chosen, findings = benchmark(parsed)
    except ValueError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    record = {"benchmark": name, **surroundings(chosen, parsed), **findings, "memory": peak_memory()}
    print("\n".join(lines(record)), flush=True)
    if parsed.output is not None:
        write_atomically(parsed.output, (json.dumps(record, indent=2) + "\n").encode())
    return 0


def surroundings(chosen: Subject, options: argparse.Namespace) -> dict[str, Any]:
    """Date, device, versions and settings."""
    device = jax.devices()[0]
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": time.strftime("%Y-%m-%d"),
        "device": {"platform": device.platform, "kind": device.device_kind, "host_cores": os.cpu_count()},
        "versions": versions,
        "settings": {
            "variant": options.variant,
            "size": chosen.size,
            "batch": chosen.batch,
            "dtype": chosen.compute_dtype,
            "repeats": options.repeats,
        },
    }


def lines(record: Mapping[str, Any]) -> list[str]:
    """The record in words, one finding a line."""
    settings, device = record["settings"], record["device"]
    shown = [
        f"{record['benchmark']}: {settings['variant']}, {settings['size']} px, batch {settings['batch']}, "
        f"{settings['dtype']}, on {device['kind']} ({device['host_cores']} host cores)",
    ]
    if parts := record.get("flop_per_image"):
        shown.append("  GFLOP: " + ", ".join(f"{name} {value / 1e9:.4g}" for name, value in parts.items()))
    for name, found in record["results"].items():
        text = f"  {name:<36} {found['seconds'] * 1e3:10.2f} ms"
        if "images_per_second" in found:
            text += f"  {found['images_per_second']:9.3f} images/s"
        if "flop_per_second" in found:
            text += f"  {found['flop_per_second'] / 1e9:10.1f} GFLOP/s"
        if "share_of_peak" in found:
            text += f"  {found['share_of_peak']:6.1%} of the peak"
        if "program_bytes" in found:
            text += f"  {found['program_bytes'] / 2**30:.2f} GiB"
        shown.append(text)
    shown += [f"  {name}: {value:.2f}" for name, value in record.get("ratios", {}).items()]
    shown += [f"  note: {note}" for note in record.get("notes", [])]
    memory = ", ".join(f"{name} {value / 2**30:.2f} GiB" for name, value in record["memory"].items())
    return [*shown, f"  most memory in use: {memory.replace('_bytes', '')}"]
