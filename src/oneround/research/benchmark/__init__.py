"""Many methods on many settings: a table of cells, its statistics, and a page."""
