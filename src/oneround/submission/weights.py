"""The member ``model.safetensors``: its header is checked before memory is allocated.

The format: 8 bytes with the length of the header (little endian), the header in JSON
``{name: {"dtype": "F32", "shape": [...], "data_offsets": [begin, end]}}``, the buffer.
https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NoReturn

import safetensors.torch
import torch
from torch import nn

from oneround.errors import Problem
from oneround.files import parse_json
from oneround.submission.container import ASK_AGAIN, JSON_LIMIT, refuse, some

DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
}
_MAX_DIMENSIONS = 8

LARGEST = 1e8
"""Largest magnitude of a weight or BatchNorm statistic: a million times that of any client model
that we measured."""


@dataclass(frozen=True)
class TensorInfo:
    """What the header says of one tensor.

    Attributes:
        dtype: type of its values.
        shape: sizes of its dimensions.
        begin: offset of its first byte in the buffer.
        end: offset after its last byte.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def serialize(model: nn.Module) -> bytes:
    """Parameters and buffers of ``model`` in safetensors format; equal weights give equal bytes."""
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }
    return safetensors.torch.save(tensors)


def parse_header(content: bytes) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file, by name; nothing is allocated for them.

    Raises:
        Refused: the header is malformed, or does not describe the buffer exactly.
    """
    length = int.from_bytes(content[:8], "little")
    if not 2 <= length <= min(JSON_LIMIT, len(content) - 8):
        _malformed(f"its header would have {length} bytes")
    try:
        header = parse_json(content[8 : 8 + length])
    except ValueError as error:
        _malformed(f"its header is not valid JSON ({str(error)[:120]!r})")
    if not isinstance(header, dict):
        _malformed("its header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        _malformed("its metadata is not a mapping of names to text")
    available = len(content) - 8 - length
    tensors = {name: _tensor_info(name, entry, available) for name, entry in header.items()}
    _check_layout(tensors, available)
    return tensors


def views(content: bytes, header: Mapping[str, TensorInfo]) -> dict[str, torch.Tensor]:
    """Tensors by name, on the CPU, that share the memory of ``content``: to be read, not written.

    Args:
        content: bytes of the safetensors file.
        header: result of :func:`parse_header`, which has compared every size with ``content``.
    """
    start = 8 + int.from_bytes(content[:8], "little")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return {
            name: _view(content, info, start + info.begin).reshape(info.shape)
            for name, info in header.items()
        }


def _view(content: bytes, info: TensorInfo, offset: int) -> torch.Tensor:
    if info.begin == info.end:
        return torch.empty(0, dtype=info.dtype)
    if offset % info.dtype.itemsize:  # no writer of safetensors does this
        content, offset = content[offset : offset + info.end - info.begin], 0
    count = (info.end - info.begin) // info.dtype.itemsize
    return torch.frombuffer(content, dtype=info.dtype, count=count, offset=offset)


def compare(
    found: Mapping[str, TensorInfo], expected: Mapping[str, torch.Tensor]
) -> Iterable[Problem]:
    """Differences between the tensors of the file and those of the network that it names."""
    common = [name for name in expected if name in found]
    groups = {
        ("tensor-missing", "missing"): [n for n in expected if n not in found],
        ("tensor-unexpected", "not in the network"): [n for n in found if n not in expected],
        ("tensor-shape", "of another shape"): [
            n for n in common if found[n].shape != tuple(expected[n].shape)
        ],
        ("tensor-dtype", "of another type"): [
            n for n in common if found[n].dtype != expected[n].dtype
        ],
    }
    why = "The weights do not belong to the architecture that the manifest names."
    for (code, how), names in groups.items():
        if names:
            yield Problem(code, f"{len(names)} tensor(s) {how}: {some(names)}", why, ASK_AGAIN)


def check_values(tensors: Mapping[str, torch.Tensor]) -> Iterable[Problem]:
    """Problems of the values: NaN, infinity, and BatchNorm statistics that no image can give."""
    bounds = {n: [float(b) for b in t.aminmax()] for n, t in tensors.items() if t.numel()}
    not_finite = [n for n, (low, high) in bounds.items() if not math.isfinite(low + high)]
    if not_finite:
        yield Problem(
            "weights-not-finite",
            f"NaN or infinite values in {some(not_finite)}",
            "One such value makes every prediction of the model NaN.",
            "Train again with a lower learning rate.",
        )
    negative = [name for name, (low, _) in bounds.items() if low < 0]
    for buffer, code in (
        ("running_var", "negative-variance"),
        ("num_batches_tracked", "negative-batch-count"),
    ):
        if names := [name for name in negative if name.rpartition(".")[2] == buffer]:
            yield Problem(
                code,
                f"negative values in {some(names)}",
                "Variances and counts are never negative, so BatchNorm would give NaN.",
                "Train again; training never gives such values, so find out who changed them.",
            )


def check_range(tensors: Mapping[str, torch.Tensor]) -> Iterable[Problem]:
    """The problem of finite values so large that no training on images gives them."""
    real = {n: t for n, t in tensors.items() if t.is_floating_point() and t.numel()}
    if absurd := [n for n, t in real.items() if t.abs().max().item() > LARGEST]:
        yield Problem(
            "weights-out-of-range",
            f"values beyond {LARGEST:.0e} in {some(absurd)}",
            "Training on images never gives such values; outputs overflow for some images.",
            "Train again with a lower learning rate, or find out who changed them.",
        )


def _tensor_info(name: str, entry: object, available: int) -> TensorInfo:
    quoted = some([name])
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        _malformed(f"the entry of {quoted} does not describe a tensor")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        refuse(
            "tensor-dtype",
            f"{quoted} has the type {str(dtype)[:20]!r}",
            f"Client models have tensors of the types {', '.join(DTYPES)}.",
        )
    if not (_are_sizes(shape) and len(shape) <= _MAX_DIMENSIONS):
        _malformed(f"the shape of {quoted} is not a short list of sizes")
    if not (_are_sizes(offsets) and len(offsets) == 2):
        _malformed(f"the offsets of {quoted} are not two positions")
    begin, end = offsets
    if 0 in shape and math.prod(side or 1 for side in shape) >= 2**63:  # more than torch multiplies
        _malformed(f"no tensor has the shape of {quoted}")
    size = math.prod(shape) * DTYPES[dtype].itemsize
    if size > available:
        refuse(
            "tensor-too-large",
            f"{quoted} declares {size:.3g} bytes in a buffer of {available}",
            "Memory is never allocated for more than the file contains.",
        )
    if end - begin != size:
        _malformed(f"{quoted} needs {size} bytes and occupies {end - begin}", "tensor-size")
    return TensorInfo(DTYPES[dtype], tuple(shape), begin, end)


def _are_sizes(values: object) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**48 for v in values)


def _check_layout(tensors: Mapping[str, TensorInfo], available: int) -> None:
    """Check that tensors follow each other, from the first byte of the buffer to the last."""
    position = 0
    for info in sorted(tensors.values(), key=lambda info: (info.begin, info.end)):
        if info.begin != position:
            _malformed("its tensors overlap or leave gaps", "tensor-layout")
        position = info.end
    if position != available:
        _malformed(f"its tensors fill {position} of {available} bytes", "tensor-layout")


def _malformed(what: str, code: str = "not-safetensors") -> NoReturn:
    refuse(
        code,
        f"the weights are not a safetensors file: {what}",
        "Only safetensors is read; a pickle or a script could run code and is never opened.",
    )
