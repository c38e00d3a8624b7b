"""The explanations that are compared: CXRNet's own, Grad-CAM, the saliency map, and the image itself.

Each computes heat maps of the evidence for one class for a batch, float32 (N, S, S), nowhere negative.
"""

from __future__ import annotations

import numpy as np
import torch
from captum.attr import LayerAttribution, LayerGradCam, Saliency
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from cxr_node.analyse.answer import AnswerRule
from cxr_node.analyse.networks import Networks
from cxr_node.nets.cxrnet import CXRNet, pooled_evidence

METHODS = ("cxrnet", "representation", "gradcam", "saliency", "input")
"""cxrnet: the relevance, as far as the node draws it. representation: the image that the second encoder gets. input: the image as
its own explanation, which says nothing and which the others have to beat."""

Heat = NDArray[np.float32]


class Classifier(nn.Module):
    """What answers in CXRNet, as one function of the image; `deepest` is where Grad-CAM looks, whatever the encoder is built of.

    Args:
        network: CXRNet.
        answer: how it answers from evidence; None: its first pass answers.
        lungs: bool (N, 1, S, S), where evidence counts.
    """

    def __init__(self, network: CXRNet, answer: AnswerRule | None = None, lungs: Tensor | None = None) -> None:
        super().__init__()
        self.network = network
        self.deepest = nn.Identity()
        self.answer = answer
        self.lungs = lungs

    def forward(self, image: Tensor) -> Tensor:
        """Image float (N, 1, S, S) in 0..1 to logits (N, C), or their like: logarithms of probabilities."""
        features = self.network.encode(image)
        features[-1] = self.deepest(features[-1])
        if self.answer is None:
            return self.network.classify(features[-1])
        evidence = self.network.draw_logits(features, image)
        second = self.network.second_pass(image, evidence)
        which = self.network.type_logits(features[-1].mean((2, 3)), second) / self.answer.temperature
        lungs = torch.ones_like(evidence, dtype=torch.bool) if self.lungs is None else self.lungs
        ill = self.answer.slope * pooled_evidence(evidence, lungs) + self.answer.intercept
        kinds = functional.logsigmoid(ill)[:, None] + functional.log_softmax(which, dim=1)
        return torch.cat([functional.logsigmoid(-ill)[:, None], kinds], dim=1)


def explanations(
    networks: Networks, crops: list[NDArray[np.uint8]], classes: list[int], lungs: list[NDArray[np.bool_]] | None = None
) -> dict[str, Heat]:
    """Heat maps by METHODS.

    Args:
        networks: the networks.
        crops: uint8 (S, S) each, as the classifier gets them.
        classes: for each crop the class that Grad-CAM and the saliency map explain; CXRNet's own explanation has none.
        lungs: bool (S, S) each, where evidence counts; None: anywhere.
    """
    with networks.torch.running():
        image = networks.torch.to_device(crops)
        representation, relevance = networks.torch.cxrnet.decode(networks.torch.cxrnet.encode(image), image)
        own = {"cxrnet": networks.heat_of(_heat(relevance)), "representation": _heat(representation), "input": _heat(image)}
    inside = None if lungs is None else torch.from_numpy(np.stack(lungs)).unsqueeze(1).to(networks.torch.device)
    classifier = Classifier(networks.torch.cxrnet, networks.answer, inside).eval()
    target = torch.tensor(classes, device=networks.torch.device)
    with torch.enable_grad():
        image = networks.torch.to_device(crops).requires_grad_()
        coarse = LayerGradCam(classifier, classifier.deepest).attribute(image, target=target, relu_attributions=True)
        gradcam = LayerAttribution.interpolate(coarse, tuple(image.shape[2:]), "bilinear")
        image = networks.torch.to_device(crops).requires_grad_()
        saliency = Saliency(classifier).attribute(image, target=target)
    return {**own, "gradcam": _heat(gradcam), "saliency": _heat(saliency)}


def _heat(maps: Tensor) -> Heat:
    return np.asarray(maps.detach().squeeze(1).float().cpu().numpy(), np.float32)
