"""Arms on disk: one safetensors and one JSON per task. Byte-stable: no time, no run id."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save

from stages.base import paths
from stages.base.files import save_bytes, save_json
from stages.contracts.arms import ArmResult, Baseline, Fit, LadderStep, MethodArms

__all__ = ["load_arms", "load_baseline", "save_arms", "save_baseline"]

_SCALARS = (
    "seed",
    "budget",
    "flops",
    "budget_flops",
    "effort",
    "used_answer",
    "calibrator",
    "cv_score",
    "explored_flops",
)


def _arrays(name: str, results: list[ArmResult]) -> dict[str, torch.Tensor]:
    return {
        f"{name}.predictions": torch.from_numpy(np.stack([r.predictions for r in results])),
        f"{name}.index": torch.from_numpy(np.stack([r.index for r in results])),
    }


def _rows(results: list[ArmResult]) -> list[dict[str, Any]]:
    return [{key: getattr(result, key) for key in _SCALARS} for result in results]


def _results(name: str, arrays: dict[str, torch.Tensor], rows: list[dict[str, Any]]) -> list[ArmResult]:
    predictions, index = arrays[f"{name}.predictions"].numpy(), arrays[f"{name}.index"].numpy()
    return [ArmResult(predictions=p, index=i, **row) for p, i, row in zip(predictions, index, rows, strict=True)]


def _write(folder: Path, task: str, arrays: dict[str, torch.Tensor], facts: dict[str, Any]) -> None:
    save_bytes(folder / f"{task}.safetensors", save({key: value.contiguous() for key, value in arrays.items()}))
    save_json(folder / f"{task}.json", facts)  # last: where it is, the arrays are


def _read(folder: Path, task: str, made_by: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    arrays = load_file(paths.require(folder / f"{task}.safetensors", made_by))
    facts = json.loads(paths.require(folder / f"{task}.json", made_by).read_text(encoding="utf-8"))
    return arrays, facts


def save_baseline(baseline: Baseline, folder: Path, task: str) -> None:
    arrays = _arrays("first", baseline.first) | _arrays("second", baseline.second)
    for seed, rungs in enumerate(baseline.rungs):
        arrays |= {f"rung.{seed}.{r.effort}": torch.from_numpy(r.features).float() for r in rungs}
    facts = {
        "first": _rows(baseline.first),
        "second": _rows(baseline.second),
        "rungs": [[{"effort": r.effort, "flops": r.flops, "look": r.look} for r in rungs] for rungs in baseline.rungs],
        "fits": [[{"kind": f.kind, "score": f.score} for f in fits] for fits in baseline.fits],
    }
    _write(folder, task, arrays, facts)


def load_baseline(folder: Path, task: str) -> Baseline:
    arrays, facts = _read(folder, task, "baseline")
    rungs = [
        [
            LadderStep(r["effort"], arrays[f"rung.{seed}.{r['effort']}"].double().numpy(), r["flops"], r["look"])
            for r in of_seed
        ]
        for seed, of_seed in enumerate(facts["rungs"])
    ]
    fits = [[Fit(**fit) for fit in of_seed] for of_seed in facts["fits"]]
    return Baseline(_results("first", arrays, facts["first"]), _results("second", arrays, facts["second"]), rungs, fits)


def save_arms(arms: MethodArms, folder: Path, task: str) -> None:
    facts = {"assisted": _rows(arms.assisted), "placebo": _rows(arms.placebo)}
    facts |= {key: getattr(arms, key) for key in ("status", "reason", "target_flops", "own_flops", "unseen_flops")}
    _write(folder, task, _arrays("assisted", arms.assisted) | _arrays("placebo", arms.placebo), facts)


def load_arms(folder: Path, task: str) -> MethodArms:
    arrays, facts = _read(folder, task, "execution")
    assisted = _results("assisted", arrays, facts.pop("assisted"))
    placebo = _results("placebo", arrays, facts.pop("placebo"))
    return MethodArms(**facts, assisted=assisted, placebo=placebo)
