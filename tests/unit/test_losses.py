"""Losses against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from training.fit.losses import fusion_loss, segmentation_loss, soft_dice


def test_dice_counts_softly():
    # p = (0.5, 1, 0, 0), t = (1, 1, 0, 0): TP 1.5, FP 0, FN 0.5 -> 3 / 3.5
    probabilities = torch.tensor([[0.5, 1.0, 0.0, 0.0]])
    target = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    assert soft_dice(probabilities, target).item() == pytest.approx(3 / 3.5, abs=1e-5)


def test_dice_is_counted_for_each_image_of_a_batch():
    probabilities = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    target = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert soft_dice(probabilities, target).tolist() == pytest.approx([1.0, 0.0], abs=1e-5)


def test_segmentation_loss_is_cross_entropy_minus_log_dice():
    # logits 0: p = 0.5 everywhere; CE = ln 2; TP = 1, FP = 1, FN = 1 -> Dice = 2 / 4
    logits = torch.zeros(1, 1, 2, 2)
    target = torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]])
    assert segmentation_loss(logits, target).item() == pytest.approx(math.log(2) - math.log(0.5), abs=1e-5)


def test_fusion_loss_adds_both_cross_entropies():
    first = torch.tensor([[0.0, math.log(3.0)]])  # probabilities 1/4, 3/4
    second = torch.tensor([[0.0, 0.0]])  # 1/2, 1/2
    loss = fusion_loss(first, second, torch.tensor([1]))
    assert loss.item() == pytest.approx(-math.log(0.75) - math.log(0.5), abs=1e-6)
