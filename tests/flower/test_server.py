"""The ServerApp against the real ClientApp and against nodes that misbehave."""

from __future__ import annotations

import html
import logging
from datetime import UTC, datetime
from pathlib import Path

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, RecordDict

from flower.federation import FakeGrid, NodeFunction, node_config, settings, well
from oneround.errors import OneRoundError
from oneround.flower import conversation, server
from oneround.flower.messages import EVALUATE, HELLO, TRAIN, content, facts_of
from oneround.flower.server import federate
from oneround.results import Results
from oneround.site_evaluation import kept_evaluations
from oneround.study import Study


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
    assert results.notes == []
    assert [e.site for e in kept_evaluations(trained / "run")] == ["north", "south", "west"]
    assert all(e.own is not None for e in kept_evaluations(trained / "run"))
    assert {p.name for p in (trained / "inbox").iterdir()} == {
        f"{site}.oneround.age" for site in ("north", "south", "west")
    }
    for page in ("report.html", "model-card.md"):
        assert (trained / "run" / page).exists()


def test_messages_end_with_the_deadline(trained: Path) -> None:
    study = Study.read(trained / "study.toml")
    soon = datetime.fromtimestamp(datetime.now(UTC).timestamp() + 600, UTC)
    hand_in = study.hand_in.model_copy(update={"deadline": soon})
    study.model_copy(update={"hand_in": hand_in}).write(trained / "study.toml")
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


def test_the_rest_goes_on(
    trained: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven nodes that fail, each in its way, beside two that do not."""
    clock = Clock()
    for module in (conversation, server):
        monkeypatch.setattr(module, "time", clock)
    nodes = {i: well(trained, s) for i, s in enumerate(("north", "south"))}
    for node_id, (answer, _) in enumerate(BAD.values(), 10):
        nodes[node_id] = instead(well(trained, "west"), TRAIN, answer)
    with caplog.at_level(logging.INFO, "oneround"):
        federate(FakeGrid(nodes), settings(trained, **{"lifetime-hours": 15 / 3600}))
    assert [r.site for r in Results.read(trained / "run").submissions] == ["north", "south"]
    page = html.unescape((trained / "run/report.html").read_text("utf-8"))
    for node_id, (_, told) in enumerate(BAD.values(), 10):
        line = f"west (node {node_id}) {told}"
        assert line in caplog.text
        assert line in notes(trained)
        assert line in page


def test_another_site_in_disguise(trained: Path) -> None:
    """West's node says that it is north, and signs with west's key."""
    nodes = {0: well(trained, "south"), 1: well(trained, "west")}
    key = node_config(trained, "west")["key"]
    nodes[2] = well(trained, "north", key=key)
    federate(FakeGrid(nodes), settings(trained))
    assert "north (node 2) could not do it" in notes(trained), "the site's own check"


def test_a_file_of_another_site_is_refused(trained: Path) -> None:
    """Somebody hands in north's file a second time, which is signed and right."""
    nodes = {0: well(trained, "north"), 1: well(trained, "south")}
    stolen: dict[str, bytes] = {}

    def again(message: Message) -> Message:
        file = trained / "inbox/north.oneround.age"
        stolen["west.oneround.age"] = file.read_bytes() if file.exists() else b""
        return reply(stolen)(message)

    nodes[2] = instead(well(trained, "west"), TRAIN, again)
    grid = FakeGrid(nodes)
    with pytest.raises(OneRoundError, match="0 submission"):
        federate(FakeGrid({}), settings(trained))
    federate(grid, settings(trained))
    assert "west (node 2) sent a file that is refused" in notes(trained)
    assert [r.site for r in Results.read(trained / "run").submissions] == ["north", "south"]


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


def test_another_study_is_named_and_not_trained_for(trained: Path) -> None:
    study = Study.read(trained / "study.toml")
    other = trained / "other.toml"
    study.model_copy(update={"seed": 5}).write(other)
    nodes = {i: well(trained, s) for i, s in enumerate(("north", "south"))}
    nodes[2] = well(trained, "west", study=str(other))
    grid = FakeGrid(nodes)
    federate(grid, settings(trained))
    assert (2, TRAIN) not in kinds(grid)
    assert "west (node 2) has another study" in notes(trained)
    assert "Evaluation: west (node 2) could not evaluate" in notes(trained)


@pytest.mark.parametrize("what", ["unsigned", "rubbish", "other model"])
def test_metrics_are_checked(what: str, trained: Path) -> None:
    west = well(trained, "west")

    def metrics(message: Message) -> Message:
        answer = west(message)
        assert isinstance(answer, Message)
        files = {name: array.data for name, array in answer.content["files"].items()}  # type: ignore[union-attr]
        if what == "unsigned":
            del files["metrics.json.sig"]
        elif what == "rubbish":
            files["metrics.json"] = b"{" * 1000
        else:
            files["metrics.json"] = files["metrics.json"].replace(b'"model": "', b'"model": "0')
        return reply(files)(message)

    nodes = {0: well(trained, "north"), 1: well(trained, "south")}
    nodes[2] = instead(west, EVALUATE, metrics)
    federate(FakeGrid(nodes), settings(trained))
    assert "Evaluation: west (node 2) sent metrics that are refused" in notes(trained)
    assert [e.site for e in kept_evaluations(trained / "run")] == ["north", "south"]


def test_names_of_nodes_are_not_trusted(trained: Path) -> None:
    nodes = {i: well(trained, s) for i, s in enumerate(("north", "south"))}
    nodes[2] = reply({}, site="\x1b[2Jwest", done=False)
    federate(FakeGrid(nodes), settings(trained))
    assert "a site unknown so far (node 2) could not do it" in notes(trained)
    assert "\x1b" not in notes(trained)


def test_an_open_study_waits_for_nodes(trained: Path) -> None:
    """Nobody knows who will come: who is online takes part."""
    study = Study.read(trained / "study.toml")
    hand_in = study.hand_in.model_copy(update={"keys": {}})
    open_study = study.model_copy(update={"sites": (), "hand_in": hand_in})
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


def test_asked_facts(trained: Path) -> None:
    """A question holds the hash of the study, and the global model; nothing else goes out."""
    study = Study.read(trained / "study.toml")
    grid = FakeGrid({i: well(trained, s) for i, s in enumerate(("north", "south"))})
    federate(grid, settings(trained))
    facts = {m.metadata.message_type: facts_of(m) for m in grid.sent}
    assert facts == {HELLO: {}, TRAIN: {"study": study.hash}, EVALUATE: {"study": study.hash}}
