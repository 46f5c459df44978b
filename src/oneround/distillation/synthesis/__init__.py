"""Image synthesis: images made from client models alone, kept in an image bank."""

from oneround.distillation.synthesis.bank import ImageBank
from oneround.distillation.synthesis.inversion import InversionOptions, synthesize

__all__ = ["ImageBank", "InversionOptions", "synthesize"]
