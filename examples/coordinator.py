"""The coordinator: one file from each hospital in, one global model out, no image needed.

Runs in under a minute: ``python examples/coordinator.py``.
"""

import tempfile
from pathlib import Path

import torch

from oneround import (
    ArchitectureSpec,
    ImageSpec,
    Study,
    TrainingSpec,
    distill,
    methods,
    read_submissions,
    train_client,
    write_report,
)
from oneround.data.phantoms import PHANTOM_CLASSES, phantoms

folder = Path(tempfile.mkdtemp(prefix="oneround-"))

# Write the study and send it to the hospitals before anyone trains.
study = Study(
    name="cells",
    classes=PHANTOM_CLASSES,
    sites=("north", "south"),
    image=ImageSpec(channels=3, height=32, width=32),
    architectures=(ArchitectureSpec(arguments={"width": 4}),),
    training=TrainingSpec(epochs=3, batch_size=32),
)
study.write(folder / "study.toml")
print(f"study {study.name}, hash {study.hash[:12]}, in {folder / 'study.toml'}")

# Two hospitals would do this at home. Their images are drawn, and never seen again below.
for seed, site in enumerate(study.sites):
    images = phantoms(torch.Generator().manual_seed(seed), train=300, val=60, test=1)
    train_client(study, site, images.train, images.val).write(folder / f"{site}.oneround", study)
    print(f"{site}.oneround has arrived")

# Everything wrong with any file is found here and told at once.
submissions = read_submissions(sorted(folder.glob("*.oneround")), study)
print(f"{len(submissions)} submissions read, {sum(s.size for s in submissions):,} bytes in all")

# Preset "quick", made quicker for this example. Leave out `options` for the preset as it is.
method = methods.get()
options = method.resolve("quick", ["inversion.images=64", "inversion.batch_size=32"])


def show(stage: str, done: int, total: int, note: str) -> None:
    """One line at the end of each stage."""
    if done == total:
        print(f"  {stage} {done}/{total} {note}")


made = distill(
    study, submissions, method=method, options=options, out=folder / "run", progress=show
)
print(f"the global model is a {made.architectures[0]}; send {folder / 'run/global.safetensors'}")
print(
    f"with config.json to the hospitals, which evaluate it; report: {write_report(folder / 'run')}"
)
