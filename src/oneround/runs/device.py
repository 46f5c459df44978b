"""Device, threads and processes of a run, with Lightning Fabric."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

from oneround.errors import OneRoundError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Device = Literal["auto", "cpu", "cuda", "mps"]
"""Device that networks run on; ``auto``: a GPU if there is one."""


def cpu() -> Fabric:
    """A fabric of this process alone, on the CPU, in single precision."""
    from lightning_fabric import Fabric  # takes seconds to import

    return Fabric(accelerator="cpu", devices=1)


def fabric_for(
    device: str = "auto",
    threads: int | None = None,
    devices: int | None = None,
    nodes: int | None = None,
) -> Fabric:
    """A fabric with these devices, threads and processes; under torchrun, with its processes.

    Args:
        device: See :data:`Device`.
        threads: CPU threads of this process; ``None``: torch decides.
        devices: Processes on this machine, each on a GPU of its own or on the CPU; ``None``: one.
        nodes: Number of machines; ``None``: one.

    Raises:
        OneRoundError: this machine has no such device, or fewer of them.
    """
    from lightning_fabric import Fabric  # takes seconds to import

    if threads:
        import torch

        torch.set_num_threads(threads)
    if "TORCHELASTIC_RUN_ID" in os.environ:  # under torchrun
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    devices, nodes = devices or 1, nodes or 1
    strategy = "ddp" if devices * nodes > 1 else "auto"
    try:
        fabric = Fabric(accelerator=device, devices=devices, num_nodes=nodes, strategy=strategy)
        if devices * nodes > 1:
            fabric.launch()
    except (ValueError, RuntimeError) as error:
        raise OneRoundError(
            f"device {device!r} cannot be used: {error}.",
            remedy="Use --device cpu; `oneround doctor` shows what this machine has.",
        ) from error
    return fabric
