"""The ClientApp: the site decides, and says no more than it has to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from oneround import signing
from oneround.federation import site as live_site
from oneround.federation.flower.messages import EVALUATE, HELLO, TRAIN, facts_of, files_of
from oneround.submission import read_submission
from tests.federation.flower.federation import asked, hospitals, node_config, run_config


def test_submission_is_sealed(tmp_path: Path) -> None:
    study = hospitals(tmp_path)
    reply = asked(TRAIN, node_config(tmp_path, "north"), study=study.hash)
    assert facts_of(reply) == {"site": "north", "done": True}
    ((name, sent),) = files_of(reply).items()
    assert name == "north.oneround.age"
    received = tmp_path / name
    received.write_bytes(sent)
    identity = signing.Identity(tmp_path / "coordinator.identity")
    assert read_submission(received, study, identity=identity).signed_by


def test_the_same_submission_is_submitted_again(tmp_path: Path) -> None:
    study, config = hospitals(tmp_path), node_config(tmp_path, "north")
    asked(TRAIN, config, study=study.hash)
    file = tmp_path / "north/north.oneround"
    weights = read_submission(file).manifest.weights_sha256
    created = read_submission(file).manifest.created
    asked(TRAIN, config, study=study.hash)
    assert read_submission(file).manifest.weights_sha256 == weights
    assert read_submission(file).manifest.created == created, "not trained again"


def test_another_study_is_refused(tmp_path: Path) -> None:
    hospitals(tmp_path)
    reply = asked(TRAIN, node_config(tmp_path, "north"), study="0" * 64)
    assert facts_of(reply) == {"site": "north", "done": False}
    assert files_of(reply) == {}
    assert not (tmp_path / "north/north.oneround").exists()


def test_a_changed_study_is_refused(tmp_path: Path) -> None:
    study = hospitals(tmp_path)
    made = signing.new_signing_key(tmp_path / "c")
    signing.sign_file(tmp_path / "study.toml", made.private)
    config = node_config(tmp_path, "north") | {"signed_by": str(made.public)}
    assert facts_of(asked(HELLO, config))["study"] == study.hash
    study.model_copy(update={"seed": 9}).write(tmp_path / "study.toml")
    assert facts_of(asked(HELLO, config)) == {"site": "north", "done": False}


def test_errors_stay_at_the_site(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file name can be the name of a patient."""
    study = hospitals(tmp_path)
    for file in (tmp_path / "north/images/train").rglob("*.png"):
        file.rename(file.with_name(f"Erika-Mustermann-{file.name}"))
        file.with_name(f"Erika-Mustermann-{file.name}").write_bytes(b"broken")
    reply = asked(TRAIN, node_config(tmp_path, "north"), study=study.hash)
    assert "Mustermann" not in str(reply.content)
    assert facts_of(reply) == {"site": "north", "done": False}
    assert "unreadable" in caplog.text
    written = (tmp_path / "north" / live_site.LOG).read_text()
    assert "unreadable" in written
    assert "Traceback" not in written


def test_even_a_fault_of_ours_stays_at_the_site(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    study = hospitals(tmp_path)

    def fails(*args: object, **kwargs: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(live_site, "make_submission", fails)
    reply = asked(TRAIN, node_config(tmp_path, "north"), study=study.hash)
    assert "secret" not in str(reply)
    assert "Traceback" in caplog.text


def test_what_the_coordinator_sends_changes_no_setting(tmp_path: Path) -> None:
    study, config = hospitals(tmp_path), node_config(tmp_path, "north")
    run = run_config(tmp_path, sites=str(tmp_path), study=str(tmp_path / "other.toml"))
    reply = asked(TRAIN, config, run, study=study.hash, data=str(tmp_path / "west/images"))
    assert facts_of(reply)["site"] == "north"


def test_metrics_only_if_the_site_wants(tmp_path: Path) -> None:
    study = hospitals(tmp_path)
    config = node_config(tmp_path, "north") | {"evaluate": False}
    reply = asked(EVALUATE, config, study=study.hash)
    assert facts_of(reply) == {"site": "north", "done": True, "told": False}
    assert files_of(reply) == {}


@pytest.mark.parametrize("changes", [{"site": "a/b"}, {"threads": -1}, {"nosuch": 1}])
def test_wrong_settings(
    changes: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hospitals(tmp_path)
    reply = asked(HELLO, node_config(tmp_path, "north") | changes)
    assert facts_of(reply)["done"] is False
    assert "--node-config" in caplog.text
    assert next(iter(changes)) in caplog.text


def test_simulated_hospitals(tmp_path: Path) -> None:
    study = hospitals(tmp_path / "sites")
    study.write(tmp_path / "study.toml")
    for extra in (tmp_path / "sites").glob("*.*"):
        extra.unlink()
    run = run_config(tmp_path, sites=str(tmp_path / "sites"))
    replies = [asked(HELLO, {"partition-id": i, "num-partitions": 3}, run) for i in range(3)]
    assert [facts_of(reply)["site"] for reply in replies] == ["north", "south", "west"]
    assert {facts_of(reply)["study"] for reply in replies} == {study.hash}
