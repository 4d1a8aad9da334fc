"""The report of a training run, from the records of its stages."""

import importlib.metadata
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from mperceiver_jax.config.experiment import Experiment
from mperceiver_jax.evaluate.report import adaptation_in_words, write_report
from mperceiver_jax.models import parameters

PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def write_run_report(experiment: Experiment, records: Sequence[dict[str, Any]], workdir: str | Path) -> str:
    """Writes `report.json` and `report.md` into the workdir; returns a message for the user."""
    results = run_results(experiment, records)
    _, readable = write_report(results, workdir)
    text = f"Report: {readable}; images: {Path(workdir) / 'samples'}"
    if "adaptation" in results:
        text += "\n" + adaptation_in_words(results["adaptation"])
    if "tasks" in results:
        # Images that need no restoration have no gain.
        degraded = [task for task in results["tasks"].values() if not task.get("clean")]
        mean = {
            side: sum(task[side]["psnr"] for task in degraded) / max(len(degraded), 1)
            for side in ("degraded", "restored")
        }
        text += (
            f"\nMean PSNR over {len(degraded)} held-out tasks: degraded {mean['degraded']:.2f} dB, "
            f"restored {mean['restored']:.2f} dB"
        )
    if kinds := results.get("weight_kinds"):
        both = ", ".join(f"{kind} {figures['psnr']:.2f} dB" for kind, figures in kinds.items())
        text += f" ({both})"
    return text


def run_results(experiment: Experiment, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What `evaluate.report` lays out, taken from the records of the stages."""
    by_name = {record["summary"]["name"]: record for record in records}
    results: dict[str, Any] = {
        "title": f"{experiment.title}, variant {experiment.variant}",
        "stages": [record["summary"] | {"held_out": _in_words(record["scalars"])} for record in records],
        "held_out": {name: record["scalars"] for name, record in by_name.items()},
        "seconds": {name: record["summary"]["seconds"] for name, record in by_name.items()},
        "parameters": _counts(experiment),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind} ({platform.machine()})",
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "notes": _notes(experiment, by_name),
    }
    if "zero_shot" in by_name:
        results["adaptation"] = adaptation_results(by_name["zero_shot"], records[-1])
    # The last stage that restored images is the run's result.
    for record in reversed(records):
        if "tasks" in record:
            results |= {key: record[key] for key in ("tasks", "weight_kinds") if key in record}
            break
    # A restorer trains its classifier together with the network, not in a stage of its own.
    for record in [by_name.get("predictor", {}), *reversed(records)]:
        if "predictor" in record:
            results["predictor"] = record["predictor"]
            break
    return results


def adaptation_results(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """The same held-out images restored before and after an adaptation, by task, the new one first."""
    last = after.get("tasks", {})
    new = before["adaptation"]["task"]
    tasks = {
        task: {"degraded": values["degraded"], "zero_shot": values["restored"]}
        | ({"few_shot": last[task]["restored"]} if task in last else {})
        for task, values in sorted(before["tasks"].items(), key=lambda item: item[0] != new)
    }
    return {**before["adaptation"], "tasks": tasks}


def _in_words(scalars: dict[str, float]) -> str:
    return ", ".join(f"{k.replace('_', ' ')} {v:.4g}" for k, v in scalars.items() if k != "score")


def _counts(experiment: Experiment) -> dict[str, int]:
    counts: dict[str, int] = {}
    _, declared = parameters.split(experiment.build())
    for path, leaf in declared.items():
        part = path.split(".")[0]
        counts[part] = counts.get(part, 0) + leaf.size
    return counts | {"total": sum(counts.values())}


def _notes(experiment: Experiment, by_name: dict[str, Any]) -> list[str]:
    evaluation, sampler = experiment.evaluation, experiment.sampler
    side = experiment.data.image_size or experiment.data.crop
    notes = [
        f"Held-out images only, {evaluation.per_task} images of {side} x {side} pixels for each task, the "
        "same for every task; degradations are synthesised from a fixed seed.",
        "PSNR and SSIM on RGB in [0, 1] without rounding to 8 bits or cropping (scikit-image's defaults); means "
        "are over images, then over tasks.",
    ]
    if not experiment.model.has_sampler:
        return [*notes, *filter(None, (experiment.model.restoration_note, experiment.warning))]
    steps = "one step" if sampler.steps == 1 else f"{sampler.steps} steps"
    notes.append(f"Restored with {steps} of the sampler {sampler.name!r}, seed {experiment.seed}.")
    if "vae" in by_name:
        ceiling = by_name["vae"]["scalars"]["psnr"]
        notes.append(
            f"The autoencoder trained here gives clean held-out images back with {ceiling:.2f} dB: without the "
            "detail refinement no restored image can be much closer to the truth than that."
        )
    if "dual_branch" in by_name and "drm" in by_name:
        before, after = (by_name[name]["scalars"]["restored_psnr"] for name in ("dual_branch", "drm"))
        notes.append(f"Mean restored PSNR before the detail refinement {before:.2f} dB, after it {after:.2f} dB.")
    if experiment.losses.lpips_weight and "drm" in by_name:
        weight = by_name["drm"]["losses"]["lpips_weight"]
        used = f"with LPIPS ({experiment.losses.lpips_net}, weight {weight:g})"
        left_out = "without LPIPS, whose weights were not installed"
        notes.append(f"The detail refinement was trained {used if weight else left_out}.")
    return notes
