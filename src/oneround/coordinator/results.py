"""``results.json``: the results of a run, for people and programs. The schema is stable."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from oneround.evaluation import Metrics
from oneround.files import read_json, write_json
from oneround.model_file import Suspect
from oneround.runs.cost import Cost
from oneround.schema import validated


class SiteMetrics(Metrics):
    """Metrics of one site's own client model.

    Attributes:
        site: name of the site.
    """

    site: str


class Models(BaseModel):
    """Metrics of every model on the same images; ``None``: not evaluated, or not possible.

    Attributes:
        sites: metrics of each site's own client model.
        fedavg: metrics of the average of the client models' weights.
        ensemble: metrics of the ensemble of client models, by the rule that the run used.
        rules: metrics of the ensemble by every combination rule.
        global_model: metrics of the global model; ``global`` in the file.
    """

    sites: list[SiteMetrics] = []
    fedavg: Metrics | None = None
    ensemble: Metrics | None = None
    rules: dict[str, Metrics] = {}
    global_model: Metrics | None = Field(default=None, alias="global")


class SubmissionRecord(BaseModel):
    """One submission that the global model was made of.

    Attributes:
        site: name of the site.
        file: name of the file.
        sha256: SHA-256 of the file, before encryption.
        bytes: size of the file as it was sent.
        architecture: network of the client model.
        signed_by: fingerprint of the site's key; ``None``: the study lists no keys.
    """

    site: str
    file: str
    sha256: str
    bytes: int
    architecture: str
    signed_by: str | None = None


class Results(BaseModel):
    """The content of ``results.json``.

    Attributes:
        format: version of this schema, ``schema`` in the file; it grows when a field changes its
            meaning.
        oneround: version of the package.
        command: command line, or the name of the program that called the package.
        created: time at which the run finished, UTC, ISO 8601.
        method: name of the method.
        study: name, hash, classes and image of the study.
        seeds: ``study``: seed of client training; ``run``: seed of everything else.
        versions: versions of all software that decides the numbers.
        options: resolved configuration of the run.
        models: metrics of every model.
        notes: sentences that a reader of the results should know.
        suspects: sites that the cross-check names: ``site``, ``why`` and whether its client model
            is ``used``.
        cost: cost of each stage, and ``bytes_sent``: size of all submissions.
        class_counts: training images of each class at each site, in the study's order; ``None``: a
            site withholds them.
        submissions: submissions that the global model was made of.
        hashes: SHA-256 of the files of the global model.
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
    suspects: list[Suspect] = []
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
