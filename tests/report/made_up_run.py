"""A RUN folder with made-up numbers, to test the page and to look at it.

``python -m tests.report.made_up_run OUT [SIDE] [CHANNELS]`` writes one and its page.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from oneround.evaluation import measure
from oneround.report import write_report

CLASSES = [
    "basophil",
    "eosinophil",
    "erythroblast",
    "immature granulocytes (myelocytes, metamyelocytes and promyelocytes)",
    "lymphocyte",
    "<script>alert('monocyte')</script>",
    "neutrophil",
    "platelet",
]
FAMILIES = ["dead leaves", "spectrum", "shapes", "gratings", "perlin", "network", "gaussian"]
SITES = [f"site-{i}" for i in range(1, 6)]


def make_run(run: Path, *, side: int = 28, channels: int = 3) -> dict[str, Any]:
    """Write everything that a simulation leaves; returns the content of results.json."""
    run.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    results = _results(generator)
    (run / "results.json").write_text(json.dumps(results))
    (run / "curves.json").write_text(json.dumps(_curves(generator)))
    _write_gallery(run / "gallery.safetensors", (channels, side, side), generator)
    return results


def make_distill_run(run: Path) -> dict[str, Any]:
    """The same of a coordinator, who has no image to evaluate on."""
    results = make_run(run)
    results |= {
        "command": "oneround distill study.toml inbox/*.oneround --out run",
        "models": {"sites": [], "fedavg": None, "ensemble": None, "global": None},
        "class_counts": None,
        "notes": [],
    }
    results["cost"]["training"] = None
    (run / "results.json").write_text(json.dumps(results))
    return results


def _metrics(skill: float, generator: torch.Generator) -> dict[str, Any]:
    labels = torch.randint(8, (1200,), generator=generator)
    logits = torch.randn(1200, 8, generator=generator)
    logits[torch.arange(1200), labels] += skill
    logits[:, 3] += 0.4 * (labels == 6)
    return measure(logits.softmax(1), labels, CLASSES, resamples=200).model_dump(mode="json")


def _results(generator: torch.Generator) -> dict[str, Any]:
    skills = dict(zip(SITES, (1.6, 2.3, 0.9, 2.0, 1.8), strict=True))
    counts = torch.randint(400, (5, 8), generator=generator) ** 2 // 400
    counts[2, 4] = 0
    submissions = [
        {
            "site": site,
            "file": f"{site}.oneround",
            "sha256": f"{i}b" * 32,
            "bytes": 731_512 + 97 * i,
        }
        for i, site in enumerate(SITES)
    ]
    return {
        "schema": 1,
        "oneround": "0.1.0",
        "command": "oneround simulate --data bloodmnist.npz --sites 5 --partition dirichlet "
        "--beta 0.6 --seed 1 --preset quick --out runs/blood",
        "created": "2025-11-24T19:02:11+00:00",
        "method": "kang2025",
        "study": {
            "name": "Blood cells",
            "hash": "5e1f" * 16,
            "classes": CLASSES,
            "image": {"channels": 3, "height": 28, "width": 28, "mean": [0.5], "std": [0.5]},
        },
        "seeds": {"study": 1, "run": 1},
        "versions": {"python": "3.11.2", "torch": "2.6.0", "monai": "1.5.0", "numpy": "1.26.4"},
        "options": {
            "preset": "quick",
            "inversion": {"steps": 300, "learning_rate": 0.05, "weights": {"bn": 10, "tv": 2.5e-5}},
            "distillation": {"temperature": 20, "steps": 2000, "noise": {"families": FAMILIES}},
        },
        "models": {
            "sites": [{"site": site, **_metrics(skills[site], generator)} for site in SITES],
            "fedavg": _metrics(0.2, generator),
            "ensemble": _metrics(3.1, generator),
            "global": _metrics(2.9, generator),
        },
        "notes": ["site-3 has no image of class lymphocyte."],
        "cost": {
            "training": {"flops": 3.1e14, "seconds": 402.3, "peak_memory_bytes": 1_400_000_000},
            "synthesis": {"flops": 2.2e14, "seconds": 251.0, "peak_memory_bytes": 2_100_000_000},
            "adaptation": {"flops": 4.0e12, "seconds": 4.2, "peak_memory_bytes": 1_100_000_000},
            "distillation": {"flops": 1.4e14, "seconds": 168.4, "peak_memory_bytes": 1_700_000_000},
            "bytes_sent": sum(submission["bytes"] for submission in submissions),
        },
        "class_counts": dict(zip(SITES, counts.tolist(), strict=True)),
        "submissions": submissions,
        "hashes": {"global.safetensors": "a7c0" * 16, "bank.safetensors": "09fe" * 16},
    }


def _curves(generator: torch.Generator) -> dict[str, Any]:
    def noisy(value: float) -> float:
        return value * (1 + 0.06 * float(torch.randn((), generator=generator)))

    return {
        "training": {
            site: [
                {
                    "epoch": epoch,
                    "loss": noisy((1.2 + i / 5) * math.exp(-epoch / 5)),
                    "val_loss": noisy((1.2 + i / 4) * math.exp(-epoch / 7)),
                    "val_accuracy": min(1, noisy(0.9 - 0.03 * i - 0.6 * math.exp(-epoch / 3))),
                }
                for epoch in range(1, 16)
            ]
            for i, site in enumerate(SITES)
        },
        "synthesis": [
            {
                "shard": shard,
                "step": step,
                "total": noisy(400 * math.exp(-step / 40) + 2),
                "cross_entropy": noisy(2.1 * math.exp(-step / 80)),
                "total_variation": noisy(900 - 2 * step),
                "batch_norm": noisy(40 * math.exp(-step / 50) + 3),
                "hit_rate": min(1, noisy(1 - 0.9 * math.exp(-step / 60))),
            }
            for shard in range(4)
            for step in range(0, 301, 10)
        ],
        "distillation": [
            {
                "step": step,
                "loss": noisy(9 * math.exp(-step / 500)),
                "original": noisy(10 * math.exp(-step / 450)),
                "noise_adapted": noisy(8 * math.exp(-step / 600)),
                "learning_rate": 0.1 * (1 + math.cos(math.pi * step / 2000)) / 2 + 1e-6,
                "agreement": min(1, noisy(0.95 - 0.7 * math.exp(-step / 300))),
            }
            for step in range(0, 2001, 50)
        ],
    }


def _write_gallery(path: Path, shape: tuple[int, ...], generator: torch.Generator) -> None:
    def images(count: int) -> torch.Tensor:
        coarse = torch.rand(count, shape[0], 7, 7, generator=generator)
        smooth = torch.nn.functional.interpolate(coarse, shape[1:], mode="bicubic")
        fine = torch.randn(smooth.shape, generator=generator) * 0.05
        return (255 * (smooth + fine).clamp(0, 1)).byte()

    save_file(
        {
            "bank": images(96),
            "bank_targets": torch.arange(96) % 8,
            "noise": images(56),
            "noise_families": torch.arange(56) % 7,
            "mixed": images(20),
            "mixed_lambda": torch.rand(20, generator=generator),
        },
        path,
        metadata={"about": json.dumps({"noise_families": FAMILIES})},
    )


if __name__ == "__main__":
    folder, side, channels = Path(sys.argv[1]), *map(int, [*sys.argv[2:], 28, 3][:2])
    make_run(folder, side=side, channels=channels)
    sys.stdout.write(f"{write_report(folder)}\n")
