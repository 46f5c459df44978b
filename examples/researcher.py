"""A researcher: many hospitals in one process, and how one option changes the result.

Runs on generated images in under a minute: ``python examples/researcher.py``. The budgets are far
too small to conclude anything; ``benchmarks/`` has the real comparisons.
"""

import tempfile
from pathlib import Path

import torch

from oneround import (
    ArchitectureSpec,
    ImageSpec,
    Study,
    TrainingSpec,
    simulate,
    write_report,
)
from oneround.data.phantoms import PHANTOM_CLASSES, phantoms

folder = Path(tempfile.mkdtemp(prefix="oneround-"))
splits = phantoms(torch.Generator().manual_seed(0), train=600, val=120, test=240)
study = Study(
    name="cells",
    classes=PHANTOM_CLASSES,
    image=ImageSpec(channels=3, height=32, width=32),
    architectures=(ArchitectureSpec(arguments={"width": 4}),),
    training=TrainingSpec(epochs=3, batch_size=32),
    seed=1,
)

# Both runs have the same sites, the same client models and the same image bank.
inversion = {"images": 48, "batch_size": 48, "steps": 20}
distillation = {"steps": 40, "batch_size": 32, "noise_pool": 128}
for mix in ("noise", "none"):
    run = folder / f"mix-{mix}"
    # The test images are used at the very end, and only to report.
    results = simulate(
        splits,
        study,
        sites=3,
        partition="dirichlet",
        beta=0.6,
        method="kang2025",
        options={"inversion": inversion, "distillation": distillation | {"mix": mix}},
        out=run,
    )
    models = results.models
    print(f"distillation.mix={mix}")
    for site in models.sites:
        print(f"  {site.site}        accuracy {site.accuracy:.2f}")
    for name, metrics in (("fedavg", models.fedavg), ("ensemble", models.ensemble),
                          ("global", models.global_model)):  # fmt: skip
        print(
            f"  {name:<13} " + (f"accuracy {metrics.accuracy:.2f}" if metrics else "not possible")
        )
    print(f"  report: {write_report(run)}")
