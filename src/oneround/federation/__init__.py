"""A live federation, whatever carries the messages: one submission from each site that is online,
then the global model out and metrics back.

:mod:`oneround.federation.site` is what a site does, :mod:`oneround.federation.coordinator` what the
coordinator does with what arrives. Both know no framework; :mod:`oneround.federation.flower`
carries their messages.
"""

from __future__ import annotations

import logging
import sys


def show_log() -> None:
    """Log what these modules do to standard output, which frameworks show and keep."""
    log = logging.getLogger(__name__)
    log.setLevel(logging.INFO)
    if not log.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("oneround: %(message)s"))
        log.addHandler(handler)
