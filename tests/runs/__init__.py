"""Tests of ``oneround.runs``."""
