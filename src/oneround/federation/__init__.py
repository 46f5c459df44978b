"""A live federation, whatever carries the messages: one submission from each site that is online,
then the global model out and metrics back.

:mod:`oneround.federation.site` is what a site does, :mod:`oneround.federation.coordinator` what the
coordinator does with what arrives. Both know no framework; :mod:`oneround.federation.flower`
carries their messages.
"""

from __future__ import annotations

import logging
import sys

from oneround.runs.callbacks import Callback

log = logging.getLogger(__name__)


def show_log() -> None:
    """Log what these modules do to standard output, which frameworks show and keep."""
    log.setLevel(logging.INFO)
    if not log.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("oneround: %(message)s"))
        log.addHandler(handler)


class LogProgress(Callback):
    """Logs how far each stage is, ten times."""

    def __init__(self) -> None:
        self._shown: dict[str, int] = {}

    def on_progress(self, stage: str, done: int, total: int, note: str) -> None:
        """After every step."""
        tenth = 10 * done // max(1, total)
        if self._shown.get(stage) != tenth:
            self._shown[stage] = tenth
            log.info("%s: %s of %s%s", stage, done, total, f", {note}" if note else "")
