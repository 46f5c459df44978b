"""The ServerApp against the real ClientApp and against nodes that misbehave."""

from __future__ import annotations

import html
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, RecordDict

from oneround.coordinator.evaluations import kept_evaluations
from oneround.coordinator.results import Results
from oneround.errors import OneRoundError
from oneround.federation.flower import polling, server
from oneround.federation.flower.messages import EVALUATE, HELLO, TRAIN, content, facts_of, files_of
from oneround.federation.flower.server import federate
from oneround.study import Study
from tests.federation.flower.federation import FakeGrid, NodeFunction, node_config, settings, well


def kinds(grid: FakeGrid) -> list[tuple[int, str]]:
    return [(m.metadata.dst_node_id, m.metadata.message_type) for m in grid.sent]


def instead(node: NodeFunction, kind: str, answer: NodeFunction) -> NodeFunction:
    """A node that does well but for one kind of message."""
    return lambda message: (answer if message.metadata.message_type == kind else node)(message)


def reply(files: dict[str, bytes], **facts: str | bool) -> NodeFunction:
    given = {"site": "west", "done": True} | facts
    return lambda message: Message(content(given, files), reply_to=message)


def notes(folder: Path) -> str:
    return "\n".join(Results.read(folder / "run").notes)


def test_one_round(trained: Path) -> None:
    grid = FakeGrid({i: well(trained, s) for i, s in enumerate(("north", "south", "west"))})
    federate(grid, settings(trained))
    assert sorted(kinds(grid)) == [(i, k) for i in range(3) for k in (EVALUATE, HELLO, TRAIN)]
    results = Results.read(trained / "run")
    assert [record.site for record in results.submissions] == ["north", "south", "west"]
    assert all(record.signed_by for record in results.submissions)
    whose, _ = results.notes
    assert whose.startswith("All layers but the last")
    assert [e.site for e in kept_evaluations(trained / "run")] == ["north", "south", "west"]
    assert all(e.own is not None for e in kept_evaluations(trained / "run"))
    assert {p.name for p in (trained / "inbox").iterdir()} == {
        f"{site}.oneround.age" for site in ("north", "south", "west")
    }
    for page in ("report.html", "model-card.md"):
        assert (trained / "run" / page).exists()


def test_a_run_without_enough_sites_ends_with_a_sentence(
    trained: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = settings(trained)
    monkeypatch.setattr(server.Settings, "of", lambda _: made)
    caplog.set_level(logging.INFO, "oneround.federation")
    ask = server.main.__wrapped__ if hasattr(server.main, "__wrapped__") else server.main
    ask(FakeGrid({0: well(trained, "north")}), None)
    last = caplog.records[-1].getMessage()
    assert last.startswith("not done: ")
    assert "1 submission(s) of the 2 that are needed" in last
    assert "Remedy:" in last


def test_messages_end_with_the_deadline(trained: Path) -> None:
    study = Study.read(trained / "study.toml")
    soon = datetime.fromtimestamp(datetime.now(UTC).timestamp() + 600, UTC)
    submission = study.submission.model_copy(update={"deadline": soon})
    study.model_copy(update={"submission": submission}).write(trained / "study.toml")
    grid = FakeGrid({i: well(trained, s) for i, s in enumerate(("north", "south", "west"))})
    federate(grid, settings(trained))
    lifetimes = {m.metadata.message_type: m.metadata.ttl for m in grid.sent}
    assert lifetimes[TRAIN] <= 600 < lifetimes[EVALUATE] <= 3600


GONE = Error(code=5, reason="Node Unavailable\x1b[31m")
OTHER = RecordDict({"files": ConfigRecord({"a": 1}), "facts": ArrayRecord()})
BAD: dict[str, tuple[NodeFunction, str]] = {
    "dies": (
        lambda _: GONE,
        "was lost before it answered (Flower's code 5: Node Unavailable?[31m)",
    ),
    "is slow": (lambda _: None, "did not answer in time"),
    "sends no file": (reply({}), "sent no submission"),
    "sends rubbish": (reply({"west.oneround": b"PK\x03\x04" * 99}), "sent a file that is refused"),
    "sends two": (reply({"a": b"1", "b": b"2"}), "sent no submission"),
    "cannot": (reply({}, done=False), "could not do it; the log of the site says why"),
    "sends other records": (lambda m: Message(OTHER, reply_to=m), "could not do it"),
}


class Clock:
    """Time passes only when somebody sleeps, a second each time."""

    def __init__(self) -> None:
        self.now = 0.0

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += 1


def strangers(folder: Path) -> dict[int, tuple[NodeFunction, str]]:
    """Nodes that are not what they say, and what is said of them."""
    west, other = well(folder, "west"), folder / "other.toml"
    Study.read(folder / "study.toml").model_copy(update={"seed": 5}).write(other)
    stolen = (folder / "north/north.oneround.age").read_bytes()
    key = node_config(folder, "west")["key"]
    return {
        20: (well(folder, "west", study=str(other)), "west (node 20) has another study"),
        21: (well(folder, "north", key=key), "north (node 21) could not do it"),
        22: (
            reply({}, site="\x1b[2Jwest", done=False),
            "a site unknown so far (node 22) could not do it",
        ),
        23: (
            instead(west, TRAIN, reply({"north.oneround.age": stolen})),
            "west (node 23) sent a file that is refused: an accepted file of 'north' is here",
        ),
    }


def liars(folder: Path) -> dict[int, NodeFunction]:
    """Nodes that send metrics that are not right."""

    def changed(change: Callable[[dict[str, bytes]], object]) -> NodeFunction:
        west = well(folder, "west")

        def metrics(message: Message) -> Message:
            answer = west(message)
            assert isinstance(answer, Message)
            files = files_of(answer)
            change(files)
            return reply(files)(message)

        return instead(instead(west, TRAIN, reply({}, done=False)), EVALUATE, metrics)

    def other_model(files: dict[str, bytes]) -> None:
        files["metrics.json"] = files["metrics.json"].replace(b'"model": "', b'"model": "0')

    return {
        30: changed(lambda files: files.pop("metrics.json.sig")),
        31: changed(lambda files: files.update({"metrics.json": b"{" * 1000})),
        32: changed(other_model),
    }


def test_the_run_continues_with_the_rest(
    trained: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two nodes that do well beside fourteen that fail, each in its way."""
    clock = Clock()
    for module in (polling, server):
        monkeypatch.setattr(module, "time", clock)
    bad = {i: (instead(well(trained, "west"), TRAIN, answer), f"west (node {i}) {outcome}")
           for i, (answer, outcome) in enumerate(BAD.values(), 10)}  # fmt: skip
    bad |= strangers(trained)
    nodes = {0: well(trained, "north"), 1: well(trained, "south")} | liars(trained)
    grid = FakeGrid(nodes | {node_id: node for node_id, (node, _) in bad.items()})
    with caplog.at_level(logging.INFO, "oneround"):
        federate(grid, settings(trained, **{"lifetime-hours": 15 / 3600}))
    assert [r.site for r in Results.read(trained / "run").submissions] == ["north", "south"]
    assert [e.site for e in kept_evaluations(trained / "run")] == ["north", "south", "west"]
    page = html.unescape((trained / "run/report.html").read_text("utf-8"))
    lies = [f"Evaluation: west (node {i}) sent metrics that are refused" for i in (30, 31, 32)]
    for line in [*(outcome for _, outcome in bad.values()), *lies]:
        assert line.removeprefix("Evaluation: ") in caplog.text
        assert line in notes(trained)
        assert line in page
    assert (20, TRAIN) not in kinds(grid)
    assert "\x1b" not in page
    study = Study.read(trained / "study.toml")
    facts = {m.metadata.message_type: facts_of(m) for m in grid.sent}
    assert facts == {HELLO: {}, TRAIN: {"study": study.hash}, EVALUATE: {"study": study.hash}}


def test_too_few_then_started_again(trained: Path) -> None:
    """What came in stays; the second run asks only those who are missing."""
    north, south = well(trained, "north"), well(trained, "south")
    with pytest.raises(OneRoundError, match=r"1 submission.* 2 that are needed.*west: no node"):
        federate(FakeGrid({0: north}), settings(trained))
    assert not (trained / "run").exists()
    grid = FakeGrid({0: north, 1: south})
    federate(grid, settings(trained))
    assert (0, TRAIN) not in kinds(grid)
    assert (1, TRAIN) in kinds(grid)


def test_a_lost_node_that_is_back_is_asked_again(trained: Path) -> None:
    north, south = well(trained, "north"), well(trained, "south")
    times = []

    class Returning(FakeGrid):
        def pull_messages(self, message_ids: object) -> list[Message]:
            found = list(super().pull_messages(message_ids))  # type: ignore[arg-type]
            if 1 not in self.nodes and len(times) == 1:
                self.nodes[1] = south
            return found

    def once_lost(message: Message) -> Message | Error | None:
        times.append(message)
        return Error(code=5, reason="gone")

    grid = Returning({0: north, 1: instead(south, TRAIN, once_lost)})
    federate(grid, settings(trained, **{"wait-minutes": 0.02}))
    assert kinds(grid).count((1, TRAIN)) == 2
    assert [r.site for r in Results.read(trained / "run").submissions] == ["north", "south"]
    assert "south (node 1) was lost" in notes(trained)


def test_an_open_study_waits_for_nodes(trained: Path) -> None:
    """Nobody knows who will come: who is online takes part."""
    study = Study.read(trained / "study.toml")
    submission = study.submission.model_copy(update={"keys": {}})
    open_study = study.model_copy(update={"sites": (), "submission": submission})
    open_study.write(trained / "study.toml")
    nodes = {i: well(trained, s) for i, s in enumerate(("north", "south"))}
    federate(FakeGrid(nodes), settings(trained))
    assert [r.site for r in Results.read(trained / "run").submissions] == ["north", "south"]


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [("study", "", "cannot read"), ("lifetime-hours", 0.0, "greater than 0"), ("sead", 1, "sead")],
)
def test_wrong_settings_are_named(key: str, value: object, reason: str, tmp_path: Path) -> None:
    with pytest.raises(OneRoundError, match=reason):
        federate(FakeGrid({}), settings(tmp_path, **{key: value}))
