"""A live federation with Flower: the same one file, by another carrier.

Where the sites can be online together, nobody has to send files: `flwr run` starts
:mod:`oneround.flower.server` at the coordinator and :mod:`oneround.flower.client` at the sites.
One message goes out and one submission comes back; then the global model goes out and metrics
come back. Needs ``pip install 'oneround[flower]'``.
"""

from __future__ import annotations

import logging
import sys


def show_log() -> None:
    """What this package says goes to standard output, which Flower shows and keeps."""
    log = logging.getLogger(__name__)
    log.setLevel(logging.INFO)
    if not log.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("oneround: %(message)s"))
        log.addHandler(handler)
