from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from oneround import web
from oneround.web import server
from tests import tiny
from tests.cli.conftest import Call


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the server was asked for; it ends at once."""
    calls = []

    def serve(place: object, **options: Any) -> None:
        calls.append({"place": place} | options)
        options["ready"]("http://x", "http://x/login?key=y")

    monkeypatch.setattr(server, "serve", serve)
    return calls


def test_says_where_it_is(call: Call, tmp_path: Path, served: list[dict[str, Any]]) -> None:
    tiny.STUDY.write(tmp_path / "tiny.toml")
    arguments = ["serve", tmp_path / "tiny.toml", tmp_path / "run", "--inbox", tmp_path]
    outcome = call(*arguments)
    assert outcome.code == 0
    assert "http://x/login?key=y" in outcome.out
    assert outcome.err == ""
    assert (served[0]["host"], served[0]["port"]) == ("127.0.0.1", 8765)
    served[0]["place"].intake.close()
    outcome = call(*arguments, "--host", "0.0.0.0", "--name", "blood.example.org", "--json")
    assert json.loads(outcome.out) == {"url": "http://x", "link": "http://x/login?key=y"}
    assert served[1]["names"] == ["blood.example.org"]


def test_warns_without_tls(call: Call, tmp_path: Path, served: list[dict[str, Any]]) -> None:
    tiny.STUDY.write(tmp_path / "tiny.toml")
    arguments = ["serve", tmp_path / "tiny.toml", tmp_path / "run", "--inbox", tmp_path]
    outcome = call(*arguments, "--host", "10.0.0.1")
    assert "Without TLS" in outcome.err
    served[0]["place"].intake.close()
    outcome = call(*arguments, "--host", "10.0.0.1", "--tls-cert", "c.pem", "--limit", 1000)
    assert outcome.err == ""
    assert served[1]["place"].intake.inbox.limit == 1000


def test_a_package_is_missing(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.STUDY.write(tmp_path / "tiny.toml")
    for name in ("app", "server"):  # as if nobody had imported them before
        monkeypatch.delitem(sys.modules, f"oneround.web.{name}", raising=False)
        monkeypatch.delattr(web, name, raising=False)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    outcome = call("serve", tmp_path / "tiny.toml", tmp_path / "run", "--inbox", tmp_path)
    assert outcome.code == 1
    assert "'fastapi'" in outcome.err
    assert "pip install 'oneround[serve]'" in outcome.err
