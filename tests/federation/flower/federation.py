"""Three hospitals in folders, and a Grid in this process on which nodes can misbehave."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid

from oneround import signing
from oneround.federation.flower import client
from oneround.federation.flower.messages import content
from oneround.federation.flower.server import Settings
from oneround.study import Study, SubmissionSpec
from tests import tiny

SITES = ("north", "south", "west")

NodeFunction = Callable[[Message], Message | Error | None]
"""What a node does with a message: answer, fail as Flower reports it, or say nothing."""


def hospitals(
    folder: Path, *, at_least: int = 2, encrypted: bool = True, training: Mapping[str, int] = {}
) -> Study:
    """Folders with images, keys and the study; ``training``: how many images, 24 by default."""
    public = {}
    for seed, site in enumerate(SITES):
        tiny.write_folder(folder / site / "images/train", tiny.images(training.get(site, 24), seed))
        tiny.write_folder(folder / site / "images/test", tiny.images(18, 10 + seed))
        made = signing.new_signing_key(folder / site / site)
        public[site] = signing.read_public_key(made.public)
    recipient = signing.read_recipient(signing.new_encryption_key(folder / "coordinator").public)
    submission = SubmissionSpec(
        keys=public, at_least=at_least, encrypt_to=recipient if encrypted else None
    )
    study = tiny.STUDY.model_copy(update={"sites": SITES, "submission": submission})
    study.write(folder / "study.toml")
    return study


def node_config(folder: Path, site: str) -> dict[str, str]:
    return {
        "site": site,
        "study": str(folder / "study.toml"),
        "data": str(folder / site / "images"),
        "work": str(folder / site),
        "key": str(folder / site / f"{site}.key"),
        "device": "cpu",
    }


def run_config(folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "study": str(folder / "study.toml"),
        "inbox": str(folder / "inbox"),
        "out": str(folder / "run"),
        "identity": str(folder / "coordinator.identity"),
        "options": " ".join(tiny.HEADFIT),
        "lifetime-hours": 1.0,
        "wait-minutes": 0.0,
        "poll-seconds": 0.001,
    } | changes


def context(run: Mapping[str, Any], node: Mapping[str, Any] = {}) -> Context:
    return Context(1, 1, dict(node), RecordDict(), dict(run))


def settings(folder: Path, **changes: Any) -> Settings:
    return Settings.of(context(run_config(folder, **changes)))


def well(folder: Path, site: str, **changes: Any) -> NodeFunction:
    """A node of this site that runs our ClientApp."""
    config = node_config(folder, site) | changes
    return lambda message: client.app(message, context({}, config))


class FakeGrid(Grid):
    """Messages and replies in this process; a node that raises is gone from then on."""

    def __init__(self, nodes: Mapping[int, NodeFunction]) -> None:
        self.nodes = dict(nodes)
        self.sent: list[Message] = []
        self._replies: dict[str, Message] = {}

    def set_run(self, run: Any) -> None: ...

    @property
    def run(self) -> Any:
        return None

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return [self._push(message) for message in messages]

    def _push(self, message: Message) -> str:
        message_id = uuid.uuid4().hex
        message.metadata.__dict__["_message_id"] = message_id
        self.sent.append(message)
        answer = self.nodes[message.metadata.dst_node_id](message)
        if isinstance(answer, Error):
            del self.nodes[message.metadata.dst_node_id]
            answer = Message(answer, reply_to=message)
        if answer is not None:
            self._replies[message_id] = answer
        return message_id

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._replies.pop(i) for i in list(message_ids) if i in self._replies]

    def send_and_receive(self, *args: Any, **kwargs: Any) -> Iterable[Message]:
        raise NotImplementedError


def asked(kind: str, config: dict[str, Any], run: Mapping[str, Any] = {}, **facts: str) -> Message:
    """What the ClientApp answers."""
    grid = FakeGrid({1: lambda message: client.app(message, context(run, config))})
    question = Message(content(facts), 1, kind)
    (reply,) = grid.pull_messages(grid.push_messages([question]))
    return reply
