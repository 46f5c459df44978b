from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import splits, write_npz


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_npz(tmp_path / "colors.npz", splits())
    return tmp_path
