"""``results.json``: what a run leaves for people and programs. The schema is stable."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from oneround.evaluation import Metrics
from oneround.files import read_json, write_json
from oneround.runs.cost import Cost
from oneround.schema import validated


class SiteMetrics(Metrics):
    """Metrics of one site's own client model."""

    site: str


class Models(BaseModel):
    """Metrics of every model on the same images; ``None``: not evaluated, or not possible.

    Attributes:
        sites: each site's own client model.
        fedavg: the client models averaged into one network.
        ensemble: the client models together, by the rule that the run used.
        rules: the same by every combination rule.
        global_model: ``global`` in the file: what the run is for.
    """

    sites: list[SiteMetrics] = []
    fedavg: Metrics | None = None
    ensemble: Metrics | None = None
    rules: dict[str, Metrics] = {}
    global_model: Metrics | None = Field(default=None, alias="global")


class SubmissionRecord(BaseModel):
    """One submission that went into the run."""

    site: str
    file: str
    sha256: str
    bytes: int
    architecture: str
    signed_by: str | None = None


class Results(BaseModel):
    """The content of ``results.json``.

    Attributes:
        format: ``schema`` in the file: version of this schema; grows when a field changes meaning.
        oneround: version of the package.
        command: what was typed, or the API call.
        created: UTC, ISO 8601.
        method: name of the method.
        study: name, hash, classes and image of the study.
        seeds: ``study`` for client training, ``run`` for everything else.
        versions: of everything that decides the numbers.
        options: the resolved configuration.
        models: metrics of every model.
        notes: what a reader should know, one sentence each.
        cost: per phase, and ``bytes_sent``: the size of all submissions.
        class_counts: training images of each class at each site, in the study's order.
        submissions: what went in.
        hashes: SHA-256 of what came out.
    """

    format: Literal[1] = Field(default=1, alias="schema")
    oneround: str
    command: str
    created: str
    method: str
    study: dict[str, Any]
    seeds: dict[str, int]
    versions: dict[str, str]
    options: dict[str, Any]
    models: Models = Models()
    notes: list[str] = []
    cost: dict[str, Cost | int]
    class_counts: dict[str, tuple[int, ...]] | None
    submissions: list[SubmissionRecord]
    hashes: dict[str, str]

    def write(self, run: Path) -> None:
        """Write ``RUN/results.json``."""
        write_json(run / "results.json", self.model_dump(mode="json", by_alias=True))

    @classmethod
    def read(cls, run: Path) -> Results:
        """Read ``RUN/results.json``.

        Raises:
            OneRoundError: it is missing or is not of this schema.
        """
        path = run / "results.json"
        return validated(cls, read_json(path), path)
