"""Calibrated probabilities of perturbed images."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from cxr_node.analyse.networks import Networks

_FORWARD_BATCH = 32


def probabilities(
    networks: Networks, crops: list[NDArray[np.uint8]], lungs: NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """Calibrated probabilities, float64 (N, C), as the node reports them, of crops uint8 (S, S).

    Args:
        networks: the networks.
        crops: what was changed.
        lungs: where evidence counts: bool (S, S), of the one image that the crops were made of, or bool (N, S, S); None:
            anywhere.
    """
    places: dict[bytes, int] = {}  # what two steps or methods leave alike, and the empty image, is classified once
    of_crop = []
    chosen: list[int] = []
    each = None if lungs is None else np.broadcast_to(lungs, (len(crops), *lungs.shape[-2:]))
    for index, crop in enumerate(crops):
        key = crop.tobytes() + (b"" if each is None or each.strides[0] == 0 else each[index].tobytes())
        if key not in places:
            places[key] = len(places)
            chosen.append(index)
        of_crop.append(places[key])
    found = []
    for start in range(0, len(chosen), _FORWARD_BATCH):
        part = chosen[start : start + _FORWARD_BATCH]
        if networks.answer is None:
            with networks.torch.running():
                image = networks.torch.to_device([crops[index] for index in part])
                logits = networks.torch.cxrnet.classify(networks.torch.cxrnet.encode(image)[-1])
                found.append(torch.softmax(logits.double() / networks.temperature, dim=1).cpu().numpy())
        else:
            inside = None if each is None else [each[index] for index in part]
            found.append(networks.classify([crops[index] for index in part], inside)[0])
    return np.concatenate(found)[of_crop]
