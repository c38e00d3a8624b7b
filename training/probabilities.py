"""Calibrated probabilities of images that were changed to see what the classifier goes by."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from cxr_node.analyse.networks import Networks

_FORWARD_BATCH = 32


def probabilities(networks: Networks, crops: list[NDArray[np.uint8]]) -> NDArray[np.float64]:
    """Calibrated probabilities of the first encoder, float64 (N, C), as the node reports them, of crops uint8 (S, S)."""
    places: dict[bytes, int] = {}  # what two steps or methods leave alike, and the empty image, is classified once
    of_crop = [places.setdefault(crop.tobytes(), len(places)) for crop in crops]
    different = [crops[of_crop.index(place)] for place in range(len(places))]
    found = []
    with networks.running():
        for start in range(0, len(different), _FORWARD_BATCH):
            image = networks.to_device(different[start : start + _FORWARD_BATCH])
            logits = networks.cxrnet.classify(networks.cxrnet.encode(image)[-1])
            found.append(torch.softmax(logits.double() / networks.temperature, dim=1).cpu().numpy())
    return np.concatenate(found)[of_crop]
