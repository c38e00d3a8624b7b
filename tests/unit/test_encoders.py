"""Every encoder has torchvision's keys and arithmetic, and carries CXRNet at any size.

The digests and figures come from torchvision 0.29.2's own networks, filled as `fill` does.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import torch

import training.encoders  # noqa: F401 - makes them known to CXRNet
from cxr_node.nets.cxrnet import CXRNet
from cxr_node.nets.encoders import ENCODERS
from training.fit.losses import fusion_loss

PARAMETERS = {  # torchvision's published counts, without classifier, auxiliary classifier and fc
    "alexnet": 2_469_696,
    "inception_v3": 21_785_568,
    "resnet34": 21_284_672,
    "resnet50": 23_508_032,
    "resnet50_v1": 23_508_032,
    "vgg16": 14_714_688,
    "vgg19": 20_024_384,
}
KEYS = {
    "alexnet": "193a6adb575375016fea406a070300ee",
    "inception_v3": "a5bae068eaa00f74278a56125f266fbd",
    "resnet34": "702aa0c017bd6da7ad24d4839deae7a7",
    "resnet50": "8d26041d6c34dc6eb4d92d0a0a8f9b50",
    "resnet50_v1": "8d26041d6c34dc6eb4d92d0a0a8f9b50",
    "vgg16": "0623446263cf73abec14e781eabf7bce",
    "vgg19": "41d1b82b1c8248582b07936ae3b8b2c4",
}
FIGURES = {
    "alexnet": [2.60595, 2.6192, 3.10918, 2.39149, 2.80463, 2.87385, 3.44425, 3.63973],
    "inception_v3": [1.64074, 1.24754, 1.29377, 1.21764, 1.08329, 1.19491, 0.950109, 0.718882],
    "resnet34": [1212.21, 1309.46, 1359.17, 1392.81, 1201.79, 1173.31, 1227.29, 1319.04],
    "resnet50": [5714.61, 6118.8, 5904.52, 6287.55, 6511.36, 5947.82, 5340.99, 6176.01],
    "vgg16": [1.27276, 1.39407, 1.30243, 1.61085, 1.37844, 1.35681, 1.45609, 1.34284],
    "vgg19": [1.73592, 1.54321, 2.12249, 1.9019, 1.59655, 1.66683, 1.8709, 1.30369],
}
SIZES_AT_224 = {
    "alexnet": (55, 27, 13, 13, 6),
    "inception_v3": (109, 52, 25, 12, 5),
    "resnet34": (112, 56, 28, 14, 7),
    "resnet50": (112, 56, 28, 14, 7),
    "resnet50_v1": (112, 56, 28, 14, 7),
    "vgg16": (112, 56, 28, 14, 7),
    "vgg19": (112, 56, 28, 14, 7),
}


def fill(network: torch.nn.Module) -> None:
    """The same numbers into networks of equal keys: weights that neither fade nor explode, no two alike."""
    rng = np.random.default_rng(0)
    for key, tensor in sorted(network.state_dict().items()):
        numbers = torch.from_numpy(rng.random(tuple(tensor.shape)))  # 0..1
        if tensor.ndim == 4:
            tensor.copy_((2 * numbers - 1) * math.sqrt(6 / tensor[0].numel()))
        elif key.endswith("running_var") or (key.endswith("weight") and tensor.ndim == 1):
            tensor.copy_(numbers + 0.5)
        elif tensor.is_floating_point():
            tensor.copy_((2 * numbers - 1) * 0.1)


def figures_of(deepest: torch.Tensor) -> list[float]:
    """The means over the image of eight equal runs of channels, so that every branch of Inception has its say."""
    return [run.mean().item() for run in deepest[0].chunk(8)]


def keys_digest(state: dict[str, torch.Tensor]) -> str:
    """The first half of the SHA-256 of all keys with their shapes."""
    lines = sorted(f"{key} {tuple(tensor.shape)}\n" for key, tensor in state.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:32]


def photograph() -> torch.Tensor:
    """A normalised RGB image of even noise, float32 (1, 3, 128, 128)."""
    return torch.from_numpy(np.random.default_rng(1).random((1, 3, 128, 128)) * 4 - 2).float()


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_has_as_many_parameters_as_published(name):
    with torch.device("meta"):
        encoder = ENCODERS[name]()
    assert sum(parameter.numel() for parameter in encoder.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_has_torchvision_s_keys_and_shapes(name):
    with torch.device("meta"):
        state = ENCODERS[name]().state_dict()
    assert keys_digest(state) == KEYS[name]


@pytest.mark.parametrize(
    ("name", "key", "shape"),
    [
        ("alexnet", "features.0.weight", (64, 3, 11, 11)),
        ("alexnet", "features.10.bias", (256,)),
        ("vgg16", "features.28.weight", (512, 512, 3, 3)),
        ("vgg19", "features.34.weight", (512, 512, 3, 3)),
        ("inception_v3", "Conv2d_1a_3x3.conv.weight", (32, 3, 3, 3)),
        ("inception_v3", "Mixed_5b.branch1x1.conv.weight", (64, 192, 1, 1)),
        ("inception_v3", "Mixed_6c.branch7x7dbl_5.bn.running_var", (192,)),
        ("inception_v3", "Mixed_7c.branch3x3dbl_3b.conv.weight", (384, 384, 3, 1)),
        ("resnet50", "layer4.2.conv3.weight", (2048, 512, 1, 1)),
    ],
)
def test_finds_a_published_tensor_where_torchvision_puts_it(name, key, shape):
    with torch.device("meta"):
        state = ENCODERS[name]().state_dict()
    assert tuple(state[key].shape) == shape


@pytest.mark.parametrize("name", sorted(FIGURES))
def test_computes_what_torchvision_computes(name):
    encoder = ENCODERS[name]().eval()
    with torch.inference_mode():
        fill(encoder)
        deepest = encoder(photograph())[-1]
    assert figures_of(deepest) == pytest.approx(FIGURES[name], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_gives_five_features_shallow_to_deep(name):
    with torch.device("meta"):
        encoder = ENCODERS[name]()
        features = encoder(torch.empty(1, 3, 224, 224))
    expected = [(1, k, s, s) for k, s in zip(encoder.channels, SIZES_AT_224[name], strict=True)]
    assert [tuple(feature.shape) for feature in features] == expected


@pytest.mark.parametrize("size", [(160, 160), (192, 192), (224, 224), (161, 193), (225, 127)])
@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_representation_has_the_input_s_size_on_every_encoder(name, size):
    with torch.device("meta"):
        output = CXRNet(name)(torch.empty(1, 1, *size))
    assert output.representation.shape == output.relevance.shape == (1, 1, *size)


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_every_encoder_learns_from_both_passes(name):
    torch.manual_seed(0)
    size = 112 if name == "inception_v3" else 64  # Inception's deepest feature is still 2 × 2 here
    network = CXRNet(name, decoder_channels=(8, 8, 8, 8, 8)).train()
    image, target = torch.rand(2, 1, size, size), torch.tensor([0, 2])
    output = network(image)
    assert output.representation.shape == image.shape
    fusion_loss(output.logits, output.representation_logits, target).backward()
    gradients = {key: parameter.grad for key, parameter in network.named_parameters()}
    assert [key for key, grad in gradients.items() if grad is None or not grad.isfinite().all() or not grad.any()] == []
    before = {key: parameter.detach().clone() for key, parameter in network.named_parameters()}
    torch.optim.Adam(network.parameters(), lr=1e-3).step()
    assert all(not parameter.equal(before[key]) for key, parameter in network.named_parameters())
