"""Tests of ``oneround.distillation.training``."""
