"""The paper's losses as pure functions of tensors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def soft_dice(probabilities: Tensor, target: Tensor) -> Tensor:
    """Dice of each image from soft counts (CXRNet eq. 2, there called Loss_Dice).

    Args:
        probabilities: float (N, …) in 0..1.
        target: float (N, …), 0 or 1, of the same shape.

    Returns:
        float (N,): 2 TP / (2 TP + FP + FN), with TP = Σ p t, FP = Σ p (1 - t), FN = Σ (1 - p) t.
    """
    p, t = probabilities.flatten(1), target.flatten(1)
    true_positive = (p * t).sum(1)
    return (2 * true_positive + 1e-6) / (p.sum(1) + t.sum(1) + 1e-6)


def segmentation_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy - log(Dice), averaged over the batch (CXRNet eq. 1).

    Args:
        logits: float (N, 1, H, W), lung where > 0.
        target: float (N, 1, H, W), 0 or 1.
    """
    cross_entropy = functional.binary_cross_entropy_with_logits(logits, target)
    return cross_entropy - torch.log(soft_dice(torch.sigmoid(logits), target)).mean()


def fusion_loss(logits_image: Tensor, logits_representation: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    """The sum of both encoders' cross-entropies (CXRNet eq. 5 and 6).

    Args:
        logits_image: float (N, C), from the first encoder.
        logits_representation: float (N, C), from the second encoder.
        target: int64 (N,), class indices.
        smoothing: label smoothing, 0..1. Differs: the paper has none.
    """
    return functional.cross_entropy(logits_image, target, label_smoothing=smoothing) + functional.cross_entropy(
        logits_representation, target, label_smoothing=smoothing
    )
