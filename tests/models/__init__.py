"""Tests of ``oneround.models``."""
