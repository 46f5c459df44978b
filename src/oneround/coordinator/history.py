"""Which submissions made which global model: ``ledger.json`` in every RUN folder.

A run that extends or replaces an earlier one takes over its entries, so the last ledger has
the whole history: which sites joined, which left, and what each model was made of.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

from oneround.files import read_json, write_json
from oneround.schema import validated

FILE = "ledger.json"
"""The file in the RUN folder."""

How = Literal["full", "extension", "withdrawal"]
"""How a global model was made; see :class:`Entry`."""


class Entry(BaseModel):
    """The history of one global model.

    Attributes:
        model: SHA-256 of its ``global.safetensors``.
        created: time at which it was made, UTC, ISO 8601.
        oneround: version of the package.
        method: name of the method.
        how: ``full``: from the submissions alone; ``extension``: from the submissions, of which
            those in ``added`` are new, and the image bank or weights of the previous model;
            ``withdrawal``: from the remaining submissions alone, nothing of an earlier model.
        submissions: SHA-256 of every submission it was made of, by site.
        added: sites that the previous model did not have.
        withdrawn: sites that have withdrawn since the previous model.
        flops: FLOPs that it cost.
        folder: name of the RUN folder it was made in.
    """

    model: str
    created: str
    oneround: str
    method: str
    how: How = "full"
    submissions: dict[str, str]
    added: tuple[str, ...] = ()
    withdrawn: tuple[str, ...] = ()
    flops: float
    folder: str


class Ledger(BaseModel):
    """All global models of a study so far.

    Attributes:
        format: version of the file format.
        entries: global models, the latest last.
    """

    format: Literal[1] = 1
    entries: list[Entry] = Field(default_factory=list)

    def write(self, run: Path) -> None:
        """Write ``RUN/ledger.json``."""
        write_json(run / FILE, self.model_dump(mode="json"))

    @classmethod
    def read(cls, run: Path) -> Ledger:
        """Read ``RUN/ledger.json``.

        Raises:
            OneRoundError: it is missing or is not a ledger.
        """
        return validated(cls, read_json(run / FILE), run / FILE)
