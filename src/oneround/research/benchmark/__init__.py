"""Benchmarks: many methods on many settings, as a table of cells, its statistics and a page."""
