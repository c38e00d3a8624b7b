"""The explanations that are compared: CXRNet's own, Grad-CAM, the saliency map, and the image itself.

Each gives for a batch a heat map of what speaks for one class, float32 (N, S, S), nowhere negative.
"""

from __future__ import annotations

import numpy as np
import torch
from captum.attr import LayerAttribution, LayerGradCam, Saliency
from numpy.typing import NDArray
from torch import Tensor, nn

from cxr_node.analyse.networks import Networks
from cxr_node.analyse.pipeline import heat_of
from cxr_node.nets.cxrnet import CXRNet

METHODS = ("cxrnet", "representation", "gradcam", "saliency", "input")
"""cxrnet: the relevance, as far as the node draws it. representation: the image that the second encoder gets. input: the image as
its own explanation, which says nothing and which the others have to beat."""

Heat = NDArray[np.float32]


class FirstEncoder(nn.Module):
    """CXRNet's classifier alone; `deepest` is where Grad-CAM looks, whatever the encoder is built of."""

    def __init__(self, network: CXRNet) -> None:
        super().__init__()
        self.network = network
        self.deepest = nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        """Image float (N, 1, S, S) in 0..1 to logits (N, C)."""
        logits: Tensor = self.network.classify(self.deepest(self.network.encode(image)[-1]))
        return logits


def explanations(networks: Networks, crops: list[NDArray[np.uint8]], classes: list[int]) -> dict[str, Heat]:
    """Heat maps by METHODS.

    Args:
        networks: the networks.
        crops: uint8 (S, S) each, lungs cut out and enhanced.
        classes: for each crop the class that Grad-CAM and the saliency map explain; CXRNet's own explanation has none.
    """
    with networks.running():
        image = networks.to_device(crops)
        representation, relevance = networks.cxrnet.decode(networks.cxrnet.encode(image), image)
        own = {"cxrnet": heat_of(_heat(relevance)), "representation": _heat(representation), "input": _heat(image)}
    classifier = FirstEncoder(networks.cxrnet).eval()
    target = torch.tensor(classes, device=networks.device)
    with torch.enable_grad():
        image = networks.to_device(crops).requires_grad_()
        coarse = LayerGradCam(classifier, classifier.deepest).attribute(image, target=target, relu_attributions=True)
        gradcam = LayerAttribution.interpolate(coarse, tuple(image.shape[2:]), "bilinear")
        image = networks.to_device(crops).requires_grad_()
        saliency = Saliency(classifier).attribute(image, target=target)
    return {**own, "gradcam": _heat(gradcam), "saliency": _heat(saliency)}


def _heat(maps: Tensor) -> Heat:
    return np.asarray(maps.detach().squeeze(1).float().cpu().numpy(), np.float32)
