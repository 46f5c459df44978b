"""Tests of ``oneround.site``."""
