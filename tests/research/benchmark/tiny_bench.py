"""A benchmark so small that a cell takes a second."""

from __future__ import annotations

from typing import Any

from oneround.research.benchmark.grid import Bench

CONTENT: dict[str, Any] = {
    "title": "tiny",
    "partitions": ["iid", "dirichlet-0.6"],
    "seeds": [1, 2],
    "sites": [2],
    "architectures": ["resnet18:width=2"],
    "training": ["epochs=1", "batch_size=8"],
    "data": [{"name": "colors", "path": "colors.npz", "public": "public.npz"}],
    "entries": [
        {"method": "ensemble", "comparison": "reference"},
        {"method": "feddf", "comparison": "equal FLOPs", "set": ["steps=2"]},
    ],
}


def bench(**changes: Any) -> Bench:
    return Bench.validate_options(CONTENT | changes, "tiny")
