"""Image synthesis: images from client models, kept in a bank."""

from oneround.distillation.synthesis.bank import ImageBank
from oneround.distillation.synthesis.inversion import InversionOptions, synthesize

__all__ = ["ImageBank", "InversionOptions", "synthesize"]
