"""Tests of ``oneround.coordinator``."""
