"""A hospital: read local images, train the client model, write the one file to submit.

Runs on generated images in a few seconds: ``python examples/hospital.py``.
"""

import tempfile
from pathlib import Path

import torch

from oneround import (
    ArchitectureSpec,
    ImageSpec,
    Study,
    TrainingSpec,
    check_submission,
    load_model,
    train_client,
)
from oneround.data.phantoms import PHANTOM_CLASSES, phantoms

# The coordinator sends the study as a file, which Study.read("study.toml") reads. It says
# what all hospitals must have in common. This one is tiny, to be quick.
study = Study(
    name="cells",
    classes=PHANTOM_CLASSES,
    image=ImageSpec(channels=3, height=32, width=32),
    architectures=(ArchitectureSpec(arguments={"width": 4}),),
    training=TrainingSpec(epochs=3, batch_size=32),
)

# Your own images: read_splits("images/", image=study.image, classes=study.classes).
splits = phantoms(torch.Generator().manual_seed(1), train=300, val=60, test=120)
counts = splits.train.class_counts().tolist()
print(f"{len(splits.train)} generated training images, {counts} by class")

# The epoch with the lowest loss on the hospital's own validation images is the result.
client = train_client(study, "north", splits.train, splits.val)
print(f"trained {client.training.epochs} epochs, kept number {client.training.best_epoch}")

# Weights and a manifest, no images. Nothing else is for the coordinator.
path = Path(tempfile.mkdtemp(prefix="oneround-")) / "north.oneround"
manifest = client.write(path, study)
print(f"{path}: {path.stat().st_size:,} bytes to submit. Its manifest says:")
print(manifest.model_dump_json(indent=2))

# What the coordinator will check, and would see.
for problem in check_submission(path, study):
    print(problem)

# Any model file can be evaluated here: a submission, or the global model when it comes back.
model = load_model(path)
metrics = model.evaluate(splits.test)
low, high = metrics.intervals["accuracy"]
print(f"accuracy on {metrics.images} test images {metrics.accuracy:.2f} [{low:.2f}, {high:.2f}]")
probabilities = model.predict_proba(splits.test)
print(f"the first image: {study.classes[probabilities[0].argmax()]}, {probabilities[0].max():.2f}")
