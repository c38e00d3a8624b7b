"""Two sets of weights on the same radiographs: where each is right, and whether the difference may be chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def beside(
    targets: NDArray[np.int64],
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    classes: Sequence[str],
    models: tuple[str, str],
) -> dict[str, Any]:
    """Compare by the likeliest class.

    Args:
        targets: class indices, int64 (N,).
        first: probabilities of the one, float64 (N, C).
        second: of the other.
        classes: C names.
        models: what the two are called.

    Returns:
        images; first, second: how many each gets right, also by_class; only_first, only_second: what one alone gets right;
        p: of the exact test by McNemar (1947).
    """
    right = [probabilities.argmax(axis=1) == targets for probabilities in (first, second)]
    only_first, only_second = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    return {
        "models": list(models),
        "images": len(targets),
        "first": int(right[0].sum()),
        "second": int(right[1].sum()),
        "by_class": {
            label: {
                "images": int((targets == index).sum()),
                "first": int(right[0][targets == index].sum()),
                "second": int(right[1][targets == index].sum()),
            }
            for index, label in enumerate(classes)
        },
        "only_first": only_first,
        "only_second": only_second,
        "p": exact_mcnemar(only_first, only_second),
    }


def exact_mcnemar(one: int, other: int) -> float:
    """Two-sided p of so uneven a split of what only one of two gets right, if each is as likely."""
    count = one + other
    tail = sum(math.comb(count, k) for k in range(min(one, other) + 1)) / float(2**count)
    return min(1.0, 2 * tail)
