"""The parts of a method: synthesis, adaptation, the student and its training."""
