"""Small DICOM and TIFF files of any kind, written byte by byte or by pydicom."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, SecondaryCaptureImageStorage

RAMP = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)  # 0 to 4095


def write_dicom(path: Path, pixels: np.ndarray, **tags: Any) -> Path:
    """An uncompressed file; ``tags`` replace or remove (``None``) what follows from ``pixels``."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = tags.pop("syntax", ExplicitVRLittleEndian)
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = "1.2.3"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = pixels.dtype.itemsize * 8
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    order = "<" if UID(dataset.file_meta.TransferSyntaxUID).is_little_endian else ">"
    if pixels.dtype.kind == "f":
        dataset.FloatPixelData = pixels.tobytes()
        tags = {"BitsStored": None, "PixelRepresentation": None, "HighBit": None, **tags}
    else:
        dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
        dataset["PixelData"].VR = "OB" if pixels.dtype.itemsize == 1 else "OW"
    dataset.HighBit = tags.get("BitsStored", dataset.BitsStored) and tags.get(
        "HighBit", tags.get("BitsStored", dataset.BitsStored) - 1
    )
    for name, value in tags.items():
        if value is None:
            dataset.__delattr__(name)
        else:
            setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def lut(first: int, bits: int, values: Any, vr: str = "OW", **replaced: Any) -> Dataset:
    """An item of a VOI or modality lookup table, with entries of 16 bits."""
    values = np.asarray(values)
    item = Dataset()
    item.LUTDescriptor = [len(values) % 65536, first, bits]
    item["LUTDescriptor"].VR = "SS" if first < 0 else "US"
    data: Any = values.astype("<u2").tobytes() if vr in ("OW", "OB") else values.tolist()
    item.add_new("LUTData", vr, data)
    for name, value in replaced.items():
        item[name].value = value
    return item


def write_tiff(
    path: Path, pixels: np.ndarray, photometric: int, endian: str = "<", **tags: int
) -> Path:
    """An uncompressed gray TIFF file; ``t258=12`` sets tag 258, and so on."""
    height, width = pixels.shape
    raw = pixels.astype(pixels.dtype.newbyteorder(endian)).tobytes()
    content = {256: width, 257: height, 258: pixels.dtype.itemsize * 8, 259: 1, 262: photometric}
    content |= {273: 0, 277: 1, 278: height, 279: len(raw)}
    content |= {int(name[1:]): value for name, value in tags.items()}
    content[273] = 8 + 2 + 12 * len(content) + 4
    entries = b"".join(
        struct.pack(endian + "HHI", tag, 3, 1) + struct.pack(endian + "HH", value, 0)
        for tag, value in sorted(content.items())
    )
    magic = b"II*\0" if endian == "<" else b"MM\0*"
    head = magic + struct.pack(endian + "IH", 8, len(content))
    path.write_bytes(head + entries + struct.pack(endian + "I", 0) + raw)
    return path
