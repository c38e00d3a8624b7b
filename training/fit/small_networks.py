"""Trains the small networks (side, letters), whose pictures all fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

_WEIGHT_DECAY = 0.02


def epochs_of(
    network: nn.Module,
    count: int,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    rng: np.random.Generator,
    loss_of: Callable[[NDArray[np.int64]], Tensor],
) -> Iterator[tuple[int, float]]:
    """Train by AdamW with one cycle of the learning rate; give the number and the mean loss of each epoch when it is over.

    Args:
        network: in place.
        count: examples.
        epochs: how often each is seen.
        batch_size: examples of a step.
        learning_rate: the highest.
        rng: draws the order.
        loss_of: the loss of the examples with these indices, int (N,).
    """
    optimiser = torch.optim.AdamW(network.parameters(), learning_rate, weight_decay=_WEIGHT_DECAY)
    steps = epochs * -(-count // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=steps)
    for epoch in range(1, epochs + 1):
        network.train()
        losses = []
        order = rng.permutation(count)
        for start in range(0, count, batch_size):
            loss = loss_of(order[start : start + batch_size])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
        yield epoch, float(np.mean(losses))
