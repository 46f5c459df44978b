"""The coordinator: one file from each hospital in, one global model out, no image needed.

Runs in under a minute: ``python examples/coordinator.py``.
"""

import tempfile
from pathlib import Path

import torch

from oneround import (
    ArchitectureSpec,
    Callback,
    ImageSpec,
    Study,
    TrainingSpec,
    aggregate,
    make_submission,
    read_submissions,
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

# Two hospitals would do this at home. Their images are generated, and never seen again below.
for seed, site in enumerate(study.sites):
    images = phantoms(torch.Generator().manual_seed(seed), train=300, val=60, test=1)
    make_submission(study, site, images, folder / f"{site}.oneround")
    print(f"{site}.oneround has arrived")

# Everything wrong with any file is found here and reported at once.
submissions = read_submissions(sorted(folder.glob("*.oneround")), study)
print(f"{len(submissions)} submissions read, {sum(s.size for s in submissions):,} bytes in all")


class EndOfStages(Callback):
    """One line at the end of each stage."""

    def on_progress(self, stage: str, done: int, total: int, note: str) -> None:
        """Called after every step."""
        if done == total:
            print(f"  {stage} {done}/{total} {note}")


# Preset "quick", made quicker for this example. Leave out `options` for the preset as it is,
# and `out` if the model is all that you want: then nothing is written.
model = aggregate(
    study,
    submissions,
    options={"inversion": {"images": 64, "batch_size": 32}},
    out=folder / "run",
    callbacks=[EndOfStages()],
)
print(f"the global model is a {model.architectures[0]}; send {folder / 'run/global.safetensors'}")
print(
    f"with config.json to the hospitals, which evaluate it; report: {write_report(folder / 'run')}"
)
