"""Networks: by name, made faster for inference, and several of them together.

============== =================================================================
``registry``    networks by name; your own joins with :func:`register`
``batch_norm``  BatchNorm layers and their statistics
``inference``   memory layout, folding, the last layer
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
