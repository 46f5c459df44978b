"""Tests of ``oneround.research``."""
