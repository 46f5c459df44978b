"""BENCH.toml: the methods and data sets of a benchmark, and the cells that follow from them."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator

from oneround import methods
from oneround.data import ImageSet, Splits
from oneround.data.phantoms import PHANTOM_CLASSES, phantoms
from oneround.errors import OneRoundError
from oneround.files import parse_toml
from oneround.research import simulation
from oneround.research.simulation import Partition
from oneround.runs.stage import derived_seed
from oneround.schema import Name, Strict, validated
from oneround.study import ArchitectureSpec, ImageSpec, Study


class Phantoms(Strict):
    """Generated images in place of a file; see :func:`oneround.data.phantoms.phantoms`.

    Attributes:
        train: Number of training images.
        val: Number of validation images.
        test: Number of test images.
        size: Height and width in pixels.
    """

    train: int = Field(ge=1)
    val: int = Field(ge=1)
    test: int = Field(ge=1)
    size: int = Field(default=32, ge=8)


class DataSource(Strict):
    """A data set of the benchmark.

    Attributes:
        name: Name of the data set in tables.
        path: Path of anything that ``oneround simulate --data`` reads, relative to the data folder.
        phantoms: Numbers and size of generated images, in place of a path.
        size: Height and width of the images, in pixels; their own size by default.
        public: Path of unlabeled public images for methods that need them, relative to the data
            folder.
    """

    name: Name
    path: str = ""
    phantoms: Phantoms | None = None
    size: int | None = None
    public: str = ""

    @model_validator(mode="after")
    def _one_source(self) -> DataSource:
        if bool(self.path) == (self.phantoms is not None):
            raise ValueError("give either path or phantoms")
        return self


class Entry(Strict):
    """A method with its options: one line of the tables.

    Attributes:
        name: Name of the entry in tables; that of the method by default.
        method: Name of the method.
        comparison: Name of the comparison; entries of the same one are compared with each other.
        preset: Preset of the method's options.
        set: Changes to the method's options, such as ``distillation.start=auto``.
        flops: Limit of FLOPs of the method; ``None``: no limit.
        data: Data sets of the entry; empty: all.
        partitions: Partitions of the entry; empty: all.
        seeds: Seeds of the entry; empty: all.
    """

    name: str = ""
    method: str
    comparison: Name
    preset: str = "quick"
    set: tuple[str, ...] = ()
    flops: float | None = Field(default=None, gt=0)
    data: tuple[str, ...] = ()
    partitions: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()

    @property
    def label(self) -> str:
        """Name of the entry in tables."""
        return self.name or self.method


class Bench(Strict):
    """A benchmark: the content of BENCH.toml.

    Attributes:
        format: Version of the file format.
        title: Title of the page.
        sites: Numbers of sites.
        partitions: Partitions of the data: ``iid``, ``site`` or ``dirichlet-BETA``.
        seeds: Seeds of partition, client training and method.
        preset: Preset of architecture and training recipe at the sites.
        architectures: Architectures of the client models, such as ``resnet18:width=8``; that of
            the preset by default.
        training: Changes to the training recipe, such as ``epochs=5``.
        threads: CPU threads of each cell, since the last bits of a result depend on them.
        data: Data sets.
        entries: Methods with their options.
    """

    format: Literal[1] = 1
    title: str
    sites: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(5,), min_length=1)
    partitions: tuple[str, ...] = Field(min_length=1)
    seeds: tuple[int, ...] = Field(min_length=1)
    preset: str = "quick"
    architectures: tuple[str, ...] = ()
    training: tuple[str, ...] = ()
    threads: int = Field(default=1, ge=1)
    data: tuple[DataSource, ...] = Field(min_length=1)
    entries: tuple[Entry, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_are_unique(self) -> Bench:
        labels = [(entry.comparison, entry.label) for entry in self.entries]
        for names in ([source.name for source in self.data], labels):
            if len(set(names)) != len(names):
                raise ValueError("names of data sets and of entries must be different")
        return self

    @classmethod
    def read(cls, path: Path) -> Bench:
        """Read and validate a file.

        Raises:
            OneRoundError: the file is missing or not TOML, or a value is not allowed.
        """
        try:
            content = parse_toml(path.read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise OneRoundError(
                f"cannot read the benchmark: {error.strerror}.",
                file=path,
                remedy="Check the path; examples are in benchmarks/.",
            ) from error
        except ValueError as error:
            raise OneRoundError(
                f"not a TOML file: {error}.", file=path, remedy="Correct the line."
            ) from error
        bench = validated(cls, content, path, strictly=True)
        for entry in bench.entries:
            methods.get(entry.method).resolve(entry.preset, entry.set)
        for partition in bench.partitions:
            parse_partition(partition)
        return bench


@dataclass(frozen=True)
class Setting:
    """Data, partition, number of sites and seed; all methods get the same client models."""

    bench: Bench
    source: DataSource
    partition: str
    sites: int
    seed: int
    folder: Path

    def load(self) -> tuple[Splits, Study]:
        """The images and the study.

        Raises:
            OneRoundError: the data set cannot be read or has no test images.
        """
        splits, study = _load(self.source, self.folder, self.bench)
        if splits.test is None or not len(splits.test):
            raise OneRoundError(
                "the data set has no test images to report on.",
                file=self.source.path,
                remedy="Add a test split.",
            )
        return splits, study.model_copy(update={"seed": self.seed})

    def divide(self, splits: Splits, study: Study) -> dict[str, tuple[ImageSet, ImageSet | None]]:
        """Training and validation images of each site, by its name."""
        kind, beta = parse_partition(self.partition)
        return simulation.divide(splits, study, self.sites, kind, beta)

    @property
    def hash(self) -> str:
        """Hash of everything that decides the client models."""
        _, study = self.load()
        return content_hash(
            {
                "images": _fingerprint(self.source, self.folder, self.bench),
                "study": study.agreement(),
                "partition": self.partition,
                "sites": self.sites,
                "threads": self.bench.threads,
            }
        )

    def __str__(self) -> str:
        return f"{self.source.name}, {self.partition}, {self.sites} sites, seed {self.seed}"


@dataclass(frozen=True)
class Cell:
    """One method, with its options, on one setting."""

    setting: Setting
    entry: Entry

    def options(self) -> Strict:
        """Options of the method, with the public images of the data set."""
        changes = list(self.entry.set)
        if self._public is not None:
            changes.append(f"public={json.dumps(str(self._public))}")
        return methods.get(self.entry.method).resolve(self.entry.preset, changes)

    @property
    def _public(self) -> Path | None:
        fields = methods.get(self.entry.method).options.model_fields
        given = any(change.startswith("public=") for change in self.entry.set)
        if "public" not in fields or given or not self.setting.source.public:
            return None
        return self.setting.folder / self.setting.source.public

    @property
    def hash(self) -> str:
        """Hash of everything that decides the result, which identifies a finished cell."""
        options = self.options().model_dump(mode="json")
        if self._public is not None:
            options["public"] = self.setting.source.public  # wherever the data folder is
        return content_hash(
            {
                "setting": self.setting.hash,
                "method": self.entry.method,
                "options": options,
                "flops": self.entry.flops,
            }
        )

    def __str__(self) -> str:
        return f"{self.entry.comparison}, {self.entry.label}: {self.setting}"


def cells_of(bench: Bench, folder: Path) -> Iterator[Cell]:
    """All cells, seed by seed: an unfinished benchmark has all methods on its first seeds."""
    places = [
        (seed, source, partition, sites)
        for seed, source, partition in itertools.product(bench.seeds, bench.data, bench.partitions)
        for sites in _numbers_of_sites(bench, source, partition, folder)
    ]
    for seed, source, partition, sites in places:
        setting = Setting(bench, source, partition, sites, seed, folder)
        for entry in bench.entries:
            wanted = (
                (source.name, entry.data),
                (partition, entry.partitions),
                (seed, entry.seeds),
            )
            if all(not only or value in only for value, only in wanted):
                yield Cell(setting, entry)


def _numbers_of_sites(
    bench: Bench, source: DataSource, partition: str, folder: Path
) -> tuple[int, ...]:
    """Numbers of sites of the benchmark, or that of the data if it has real sites."""
    if partition != "site":
        return bench.sites
    named = _load(source, folder, bench)[0].train.sites
    return bench.sites[:1] if named is None else (len(set(named)),)


def parse_partition(text: str) -> tuple[Partition, float]:
    """Kind and β of a partition such as ``dirichlet-0.6``; β is 0 for ``iid`` and ``site``.

    Raises:
        OneRoundError: there is no such partition.
    """
    kind, _, beta = text.partition("-")
    try:
        if kind == "dirichlet":
            return "dirichlet", float(beta)
        if text in ("iid", "site"):
            return ("iid" if text == "iid" else "site"), 0.0
    except ValueError:
        pass
    raise OneRoundError(
        f"{text!r} is no partition.",
        remedy="Use iid, site or dirichlet-BETA (dirichlet-0.6).",
    )


@lru_cache(maxsize=4)
def _load(source: DataSource, folder: Path, bench: Bench) -> tuple[Splits, Study]:
    changes = [f"training.{change}" for change in bench.training]
    networks = tuple(ArchitectureSpec.parse(text) for text in bench.architectures)
    if source.phantoms is None:
        return simulation.prepare(
            folder / source.path,
            size=source.size,
            architectures=networks,
            preset_name=bench.preset,
            training=changes,
        )
    drawn = source.phantoms
    generator = torch.Generator().manual_seed(derived_seed("phantoms", source.name))
    splits = phantoms(generator, train=drawn.train, val=drawn.val, test=drawn.test, size=drawn.size)
    image = ImageSpec(height=drawn.size, width=drawn.size)
    study = simulation.study_for(
        source.name, PHANTOM_CLASSES, image, networks, bench.preset, changes, 0
    )
    return splits, study


@lru_cache(maxsize=64)
def _fingerprint(source: DataSource, folder: Path, bench: Bench) -> str:
    """Hash of all images, their labels and sites."""
    splits, _ = _load(source, folder, bench)
    digest = hashlib.sha256()
    for part in (splits.train, splits.val, splits.test):
        if part is not None:
            part.feed(digest)
    return digest.hexdigest()


def content_hash(content: dict[str, Any]) -> str:
    """A short hash of JSON content."""
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
