"""The loss of knowledge distillation."""

from __future__ import annotations

import torch


def kd_loss(
    student: torch.Tensor,
    teacher: torch.Tensor,
    temperature: float,
    weight: torch.Tensor | float = 1.0,
) -> torch.Tensor:
    """Distillation loss weight·T²·KL(p ‖ q), mean over the batch (Hinton et al., 2015).

    Args:
        student: Logits of the student, (B, classes); q is their softmax at temperature T.
        teacher: Log-probabilities of the teacher at temperature 1, (B, classes), which are
            softened to p; or those of S teachers, (S, B, classes).
        temperature: Temperature T, above 0.
        weight: Weight of each sample, (B,), or of each sample for each teacher, (S, B).

    Returns:
        A scalar; with S teachers, one loss for each, (S,).
    """
    log_q = (student / temperature).log_softmax(-1)
    log_p = (teacher / temperature).log_softmax(-1)
    divergence = temperature**2 * (log_p.exp() * (log_p - log_q)).sum(-1)
    return (weight * divergence).mean(-1)
