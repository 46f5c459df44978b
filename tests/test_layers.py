"""What `lint-imports` does not look at: circles among single files, packages' own ones included."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter

import grimp
import pytest


def test_no_files_import_each_other_in_a_circle() -> None:
    """Imports inside functions and for type checking count too."""
    graph = grimp.build_graph("oneround", cache_dir=None)
    imports = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    assert imports["oneround.cli"]
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        pytest.fail("a circle of imports: " + " is imported by ".join(error.args[1]))
