"""What the messages hold: files as bytes, and short answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from oneround.federation.site import Fact

HELLO, TRAIN, EVALUATE = "query.hello", "train.submission", "evaluate.global"
"""Message types, as Flower routes them to the functions of the ClientApp."""

FILES, FACTS = "files", "facts"

Record = TypeVar("Record", ArrayRecord, ConfigRecord, MetricRecord)


def content(facts: Mapping[str, Fact], files: Mapping[str, bytes] | None = None) -> RecordDict:
    """The content of a message.

    Bytes travel as arrays, which Flower cuts into pieces; nothing ever makes them arrays again.
    """
    arrays = {
        name: Array(dtype="uint8", shape=(len(data),), stype="bytes", data=data)
        for name, data in (files or {}).items()
    }
    return RecordDict({FACTS: ConfigRecord(dict(facts)), FILES: ArrayRecord(arrays)})


def facts_of(message: Message) -> dict[str, Fact]:
    """The short answers in a message from anyone; those of other kinds are passed over."""
    found = _record(message, FACTS, ConfigRecord)
    return {k: v for k, v in (found or {}).items() if isinstance(v, Fact)}


def files_of(message: Message) -> dict[str, bytes]:
    """The files in a message from anyone, by name."""
    found = _record(message, FILES, ArrayRecord)
    return {name: array.data for name, array in (found or {}).items()}


def _record(message: Message, name: str, kind: type[Record]) -> Record | None:
    if not message.has_content():
        return None
    record = message.content.get(name)
    return record if isinstance(record, kind) else None
