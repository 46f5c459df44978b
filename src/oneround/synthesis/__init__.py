"""Image synthesis: images from client models, kept in a bank."""

from oneround.synthesis.bank import ImageBank
from oneround.synthesis.inversion import InversionOptions, synthesize

__all__ = ["ImageBank", "InversionOptions", "synthesize"]
