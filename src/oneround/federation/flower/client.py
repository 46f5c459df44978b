"""The ClientApp: a site of :mod:`oneround.federation`, asked by Flower.

The settings are those of ``--node-config`` of the site's SuperNode. Flower sends the text of an
exception to the server, so none is let through.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, UserConfig
from flwr.clientapp import ClientApp

from oneround.federation import show_log, site
from oneround.federation.flower.messages import content, facts_of, files_of
from oneround.federation.site import Answer, Site

app = ClientApp()


@app.query("hello")
def hello(message: Message, context: Context) -> Message:
    """Say who is there, and for which study."""
    return _reply(message, context, site.hello)


@app.train("submission")
def train(message: Message, context: Context) -> Message:
    """Train, and answer with the submission."""
    asked = str(facts_of(message).get("study"))
    return _reply(message, context, partial(site.submission, asked=asked))


@app.evaluate("global")
def evaluate(message: Message, context: Context) -> Message:
    """Measure the global model, and answer with counts and metrics."""
    asked, model = str(facts_of(message).get("study")), files_of(message)
    return _reply(message, context, partial(site.metrics, asked=asked, model=model))


def _reply(message: Message, context: Context, function: Callable[[Site], Answer]) -> Message:
    show_log()
    facts, files = site.answered(lambda: settings(context), function)
    return Message(content(facts, files), reply_to=message)


def settings(context: Context) -> Site:
    """The settings of this node; in a simulation, those of a hospital in its folder.

    Raises:
        OneRoundError: a key is missing, unknown or wrong.
    """
    given: dict[str, Any] = {k.replace("-", "_"): v for k, v in context.node_config.items()}
    if "partition_id" in given:  # set by Flower's simulation, which sites never run
        given = _simulated(context.run_config, int(given["partition_id"]))
    return Site.validate_options(given, "--node-config")


def _simulated(run: UserConfig, partition: int) -> dict[str, Any]:
    """A simulation plays hospitals whose folders lie side by side, in the order of names."""
    folders = sorted(path for path in Path(str(run["sites"])).iterdir() if path.is_dir())
    folder = folders[partition]
    key = folder / f"{folder.name}.key"
    return {
        "site": folder.name,
        "study": str(run["study"]),
        "data": str(folder / "images"),
        "work": str(folder),
        "device": "cpu",
        **({"key": str(key)} if key.is_file() else {}),
    }
