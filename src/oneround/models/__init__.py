"""Networks by name, their BatchNorm statistics, faster inference, and ensembles of client models.

============== =================================================================
``registry``    networks by name; :func:`register` adds your own
``batch_norm``  BatchNorm layers and their statistics
``inference``   memory layout, folded BatchNorm, the last layer
``ensemble``    client models together, with a combination rule
============== =================================================================
"""

from oneround.models.registry import (
    Builder,
    build,
    expected_tensors,
    names,
    register,
    require_fit,
    size_in_bytes,
)

__all__ = [
    "Builder",
    "build",
    "expected_tensors",
    "names",
    "register",
    "require_fit",
    "size_in_bytes",
]
