"""MedMNIST files (Yang et al., Scientific Data 10, 41, 2023): read, and download by name.

Class names and MD5 sums are those of version 3.0.2 of the authors' package, for the 2-D sets
with one label per image. One name is shortened: "immature granulocytes" continues with
"(myelocytes, metamyelocytes and promyelocytes)" there.
"""

from __future__ import annotations

import math
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pooch
import torch

from oneround.data import cache as caches
from oneround.data.image_set import ImageSet, Splits
from oneround.data.images import fit
from oneround.data.listing import SPLITS
from oneround.data.store import MemoryStore, require_memory
from oneround.errors import OneRoundError
from oneround.schema import comparable
from oneround.study import MOST_CLASSES, ImageSpec

Arrays = Mapping[str, tuple["Pixels", torch.Tensor]]
"""Images and labels, (N,) ``int64``, by split."""

URL = "https://zenodo.org/records/10519652/files/{name}.npz"
ORGANS = (
    "bladder",
    "femur-left",
    "femur-right",
    "heart",
    "kidney-left",
    "kidney-right",
    "liver",
    "lung-left",
    "lung-right",
    "pancreas",
    "spleen",
)
CLASSES = {
    "bloodmnist": (
        "basophil",
        "eosinophil",
        "erythroblast",
        "immature granulocytes",
        "lymphocyte",
        "monocyte",
        "neutrophil",
        "platelet",
    ),
    "breastmnist": ("malignant", "normal, benign"),
    "dermamnist": (
        "actinic keratoses and intraepithelial carcinoma",
        "basal cell carcinoma",
        "benign keratosis-like lesions",
        "dermatofibroma",
        "melanoma",
        "melanocytic nevi",
        "vascular lesions",
    ),
    "octmnist": ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
    "organamnist": ORGANS,
    "organcmnist": ORGANS,
    "organsmnist": ORGANS,
    "pathmnist": (
        "adipose",
        "background",
        "debris",
        "lymphocytes",
        "mucus",
        "smooth muscle",
        "normal colon mucosa",
        "cancer-associated stroma",
        "colorectal adenocarcinoma epithelium",
    ),
    "pneumoniamnist": ("normal", "pneumonia"),
    "retinamnist": ("0", "1", "2", "3", "4"),
    "tissuemnist": (
        "Collecting Duct, Connecting Tubule",
        "Distal Convoluted Tubule",
        "Glomerular endothelial cells",
        "Interstitial endothelial cells",
        "Leukocytes",
        "Podocytes",
        "Proximal Tubule Segments",
        "Thick Ascending Limb",
    ),
}
MD5 = {
    "bloodmnist": "7053d0359d879ad8a5505303e11de1dc",
    "bloodmnist_64": "2b94928a2ae4916078ca51e05b6b800b",
    "bloodmnist_128": "adace1e0ed228fccda1f39692059dd4c",
    "bloodmnist_224": "b718ff6835fcbdb22ba9eacccd7b2601",
    "breastmnist": "750601b1f35ba3300ea97c75c52ff8f6",
    "breastmnist_64": "742edef2a1fd1524b2efff4bd7ba9364",
    "breastmnist_128": "363e4b3f8d712e9b5de15470a2aaadf1",
    "breastmnist_224": "b56378a6eefa9fed602bb16d192d4c8b",
    "dermamnist": "0744692d530f8e62ec473284d019b0c7",
    "dermamnist_64": "b70a2f5635c6199aeaa28c31d7202e1f",
    "dermamnist_128": "2defd784463fa5243564e855ed717de1",
    "dermamnist_224": "8974907d8e169bef5f5b96bc506ae45d",
    "octmnist": "c68d92d5b585d8d81f7112f81e2d0842",
    "octmnist_64": "e229e9440236b774d9f0dfef9d07bdaf",
    "octmnist_128": "0a97e76651ace45c5d943ee3f65b63ae",
    "octmnist_224": "abc493b6d529d5de7569faaef2773ba3",
    "organamnist": "68e3f8846a6bd62f0c9bf841c0d9eacc",
    "organamnist_64": "2dcccc29b88e6da5a01161ef20cda288",
    "organamnist_128": "eeae80d0a227a8d099027e1b3cfd3b60",
    "organamnist_224": "50747347e05c87dd3aaf92c49f9f3170",
    "organcmnist": "b9ceb9546e10131b32923c5bbeaea2b1",
    "organcmnist_64": "3ce34a8724ea6f548e6db4744d03b6a9",
    "organcmnist_128": "773c1f009daa3fe5d9a2a201b2a7ed94",
    "organcmnist_224": "050f5e875dc056f6768abf94ec9995d1",
    "organsmnist": "9ab87b696fb54e2a387ebe992d6ed5f1",
    "organsmnist_64": "53a6d115339d874c25e309a994ff46d3",
    "organsmnist_128": "ded0c5fa01a95dc4978b956f613e9b8e",
    "organsmnist_224": "b354719e553fbbb2513d5533f52a4cb1",
    "pathmnist": "a8b06965200029087d5bd730944a56c1",
    "pathmnist_64": "55aa9c1e0525abe5a6b9d8343a507616",
    "pathmnist_128": "ac42d08fb904d92c244187169d1fd1d9",
    "pathmnist_224": "2c51a510bcdc9cf8ddb2af93af1eadec",
    "pneumoniamnist": "28209eda62fecd6e6a2d98b1501bb15f",
    "pneumoniamnist_64": "8f4eceb4ccffa70c672198ea285246c6",
    "pneumoniamnist_128": "05b46931834c231683c68f40c47b2971",
    "pneumoniamnist_224": "d6a3c71de1b945ea11211b03746c1fe1",
    "retinamnist": "bd4c0672f1bba3e3a89f0e4e876791e4",
    "retinamnist_64": "afda852cc34dcda56f86ad2b2457dbcc",
    "retinamnist_128": "e48e916a24454daf90583d4e6efb1a18",
    "retinamnist_224": "eae7e3b6f3fcbda4ae613ebdcbe35348",
    "tissuemnist": "ebe78ee8b05294063de985d821c1c34b",
    "tissuemnist_64": "123ece2eba09d0aa5d698fda57103344",
    "tissuemnist_128": "61b955355d7425a89687b06cca3ce0c2",
    "tissuemnist_224": "b077128c4a949f0a4eb01517f9037b9c",
}


def is_name(text: str) -> bool:
    """Whether ``text`` looks like the name of a MedMNIST set rather than like a path."""
    return re.fullmatch(r"[a-z]+mnist(3d)?(_\d+)?", text) is not None


def fetch(name: str, download: bool) -> Path:
    """Path of the file of a MedMNIST set in pooch's cache, downloaded if it is not there.

    The file is checked by its MD5 sum.

    Raises:
        OneRoundError: ``download`` is false, the name is unknown, or the download failed.
    """
    if name not in MD5:
        raise OneRoundError(
            f"there is no MedMNIST set {name} with one label per 2-D image.",
            remedy=f"Known are {', '.join(CLASSES)}; add _64, _128 or _224 for a larger size.",
        )
    if not download:
        raise OneRoundError(
            f"there is no file {name}.",
            remedy=f"Download it with --download (in Python, download=True), or fetch "
            f"{URL.format(name=name)} and give the path of the file.",
        )
    try:
        file = pooch.retrieve(
            URL.format(name=name),
            known_hash=f"md5:{MD5[name]}",
            fname=f"{name}.npz",
            path=pooch.os_cache("oneround"),
        )
    except (OSError, ValueError) as error:
        raise OneRoundError(
            f"downloading {URL.format(name=name)} failed: {error}.",
            remedy="Check the connection and try again, or fetch the file another way.",
        ) from error
    return Path(file)


def read_medmnist(
    path: Path, *, image: ImageSpec, classes: Sequence[str] | None, cache: Path | None = None
) -> Splits:
    """Read a ``.npz`` file; see :func:`oneround.data.read_splits`.

    Raises:
        OneRoundError: the file is not in MedMNIST's format, has several labels per image, its
            labels do not match ``classes``, or its images do not fit into memory.
    """
    arrays = load_arrays(path)
    own_names = class_names(path, arrays)
    names = own_names if classes is None else tuple(classes)
    index, told = _label_map(path, own_names, names)
    sets: dict[str, ImageSet] = {}
    for split, (pixels, labels) in arrays.items():
        with _readable(path):
            sets[split] = _image_set(pixels, index[labels], names, image, cache)
    empty = ImageSet(torch.empty((0, *image.shape), dtype=torch.uint8), index[:0], names)
    return Splits(sets.get("train", empty), sets.get("val"), sets.get("test"), told)


def _image_set(
    pixels: Pixels, labels: torch.Tensor, names: Sequence[str], image: ImageSpec, cache: Path | None
) -> ImageSet:
    """Images of one split, fitted part by part."""
    needed = pixels.shape[0] * math.prod(image.shape)
    if cache is None:
        require_memory(needed)
    fitted = (fit(part, image) for part in pixels.parts())
    if cache is None:
        memory = MemoryStore(pixels.shape[0], image.shape, torch.uint8)
        for part in fitted:
            memory.append(part)
        return ImageSet(memory.pixels(), labels, names)
    with caches.opened(cache, image, torch.uint8) as kept:
        key = kept.key(pixels.path, pixels.name)
        entry = kept.find(key) or kept.keep(key, fitted, caches.Facts())
        kept.add(entry)
        rows = torch.arange(entry.rows.start, entry.rows.stop)
        return ImageSet(kept.pixels(), labels, names, rows=rows)


@dataclass(frozen=True)
class Pixels:
    """The images of one split in a file, not yet read.

    Attributes:
        path: The ``.npz`` file.
        name: Name of the array in it.
        shape: (N, H, W) or (N, H, W, 3).
    """

    path: Path
    name: str
    shape: tuple[int, ...]

    @property
    def of_one(self) -> tuple[int, ...]:
        """Shape of one image, (C, H, W)."""
        return ((*self.shape, 1)[3], *self.shape[1:3])

    def parts(self, size: int = 1024) -> Iterator[torch.Tensor]:
        """The images, (B, C, H, W) ``uint8``, ``size`` at a time, so that only these are in memory.

        Raises:
            ValueError: the file ends too early, or the order of its values is not that of rows.
        """
        channels, each = self.of_one[0], math.prod(self.shape[1:])
        with zipfile.ZipFile(self.path) as archive, archive.open(f"{self.name}.npy") as file:
            _npy_header(file)
            for start in range(0, self.shape[0], size):
                count = min(size, self.shape[0] - start)
                content = file.read(count * each)
                if len(content) != count * each:
                    raise ValueError(f"{self.name} ends too early")
                rows = np.frombuffer(content, np.uint8).reshape(count, *self.shape[1:3], channels)
                yield torch.from_numpy(np.array(rows.transpose(0, 3, 1, 2), order="C"))


def load_arrays(path: Path) -> Arrays:
    """Images and labels of each split in a ``.npz`` file; nothing in it is ever unpickled.

    Raises:
        OneRoundError: the file is not in MedMNIST's format or has several labels per image.
    """
    with _readable(path):
        if not zipfile.is_zipfile(path):
            raise ValueError("it is not an npz archive")
        with np.load(path, allow_pickle=False) as file:
            names = [split for split in SPLITS if f"{split}_images" in file]
            arrays = {
                split: (_pixels(path, f"{split}_images"), _labels(file[f"{split}_labels"]))
                for split in names
            }
        for pixels, labels in arrays.values():
            if len(labels) != pixels.shape[0]:
                raise ValueError("there must be one label for each image, counted from 0")
        arrays = {split: pair for split, pair in arrays.items() if len(pair[1])}
        if not arrays:
            raise ValueError("there are no images in it")
    return arrays


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Raise :class:`OneRoundError` in place of what is raised while a damaged file is read."""
    try:
        yield
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
    ) as e:
        reason = str(e.args[0] if isinstance(e, KeyError) else e).splitlines()[0]
        raise OneRoundError(
            f"not a MedMNIST file: {reason}.",
            file=path,
            remedy="Use a 2-D MedMNIST file with one label per image; download it again if "
            "damaged.",
        ) from e


def class_names(path: Path, arrays: Arrays) -> tuple[str, ...]:
    """Class names in order: MedMNIST's if the file is named after one of its sets, else "0", "1", …

    Raises:
        OneRoundError: a label is not one of the set's classes.
    """
    found = 1 + max(int(labels.max()) for _, labels in arrays.values())
    known = CLASSES.get(re.split(r"[^a-z]", path.name.lower())[0])
    if known is None:
        return tuple(str(label) for label in range(max(found, 2)))
    if found > len(known):
        raise OneRoundError(
            f"there is a label {found - 1}, and {path.stem} has {len(known)} classes.",
            file=path,
            remedy="Rename the file if it is not this MedMNIST set.",
        )
    return known


def _pixels(path: Path, name: str) -> Pixels:
    """The images of one split, from the header of their array."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
        shape, in_rows, dtype = _npy_header(file)
    if dtype != np.uint8 or len(shape) not in (3, 4) or (*shape, 1)[3] not in (1, 3):
        raise ValueError(
            f"images of shape {shape} and type {dtype} are not 2-D, gray or color, and 8-bit"
        )
    if not in_rows:
        raise ValueError(f"the values of {name} are stored column by column")
    return Pixels(path, name, shape)


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether the values are stored row by row, and type of an array in NumPy's format."""
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0}.get(
        version, np.lib.format.read_array_header_2_0
    )
    shape, by_columns, dtype = read(file)
    return shape, not by_columns or len(shape) < 2, dtype


def _labels(labels: npt.NDArray[np.generic]) -> torch.Tensor:
    if labels.ndim == 2 and labels.shape[1] > 1:
        raise ValueError(f"it has {labels.shape[1]} labels per image, and one is needed")
    labels = labels.reshape(-1)
    if labels.dtype.kind not in "ui" or labels.min(initial=0) < 0:
        raise ValueError("there must be one label for each image, counted from 0")
    if labels.max(initial=0) >= MOST_CLASSES:
        raise ValueError(f"there is a label {labels.max()}, and at most {MOST_CLASSES} classes")
    return torch.from_numpy(labels.astype(np.int64))


def _label_map(
    path: Path, own: tuple[str, ...], classes: tuple[str, ...]
) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Index in ``classes`` of each label of the file, by name if the names are the same, and a line
    for the user if it is by position though the names differ.

    Names are compared as :func:`oneround.schema.comparable` does.
    """
    mine, theirs = [comparable(name) for name in own], [comparable(name) for name in classes]
    if set(mine) == set(theirs):
        return torch.tensor([theirs.index(name) for name in mine]), ()
    unnamed = own == tuple(str(label) for label in range(len(own)))
    if len(own) > len(classes) or (len(own) < len(classes) and not unnamed):
        raise OneRoundError(
            f"has {len(own)} classes, and the study has {len(classes)}.",
            file=path,
            remedy=f"Its classes are {', '.join(own)}.",
        )
    moved = [own[i] for i, name in enumerate(mine) if name in theirs and theirs[i] != name]
    if moved:
        raise OneRoundError(
            f"the study lists {', '.join(moved)} in another place, and other names differ.",
            file=path,
            remedy=f"Use the names {', '.join(own)}, in any order.",
        )
    pairs = [f"{a} is {b}" for a, b in zip(own, classes, strict=False) if a != b]
    line = f"{path}: its names differ from the study's and are taken in order: {'; '.join(pairs)}"
    return torch.arange(len(own)), () if unnamed else (line,)
