"""CXRNet's and the U-Net's structure: what the paper says of them must be true of the tensors."""

from __future__ import annotations

import pytest
import torch

import training.encoders  # noqa: F401 - makes them known to CXRNet
from cxr_node.nets.cxrnet import CXRNet, icnr_
from cxr_node.nets.encoders import ENCODERS
from cxr_node.nets.unet import UNet
from training.fit.losses import fusion_loss


def test_icnr_starts_without_a_checkerboard():
    convolution = torch.nn.Conv2d(5, 3 * 4, 1, bias=False)
    icnr_(convolution.weight)
    enlarged = torch.nn.functional.pixel_shuffle(convolution(torch.rand(1, 5, 4, 4)), 2)
    blocks = enlarged.unfold(2, 2, 2).unfold(3, 2, 2)  # (1, 3, 4, 4, 2, 2)
    assert torch.allclose(blocks, blocks[..., :1, :1].expand_as(blocks), atol=1e-6)


@pytest.mark.parametrize("name", ["resnet34", "resnet50", "resnet50_v1"])
def test_residual_encoder_halves_five_times(name):
    encoder = ENCODERS[name]().eval()
    with torch.inference_mode():
        features = encoder(torch.rand(1, 3, 64, 96))
    assert [tuple(f.shape[2:]) for f in features] == [(32, 48), (16, 24), (8, 12), (4, 6), (2, 3)]
    assert tuple(f.shape[1] for f in features) == encoder.channels


def test_first_published_resnet50_strides_on_its_first_convolution():
    assert ENCODERS["resnet50_v1"]().layer2[0].conv1.stride == (2, 2)
    assert ENCODERS["resnet50"]().layer2[0].conv2.stride == (2, 2)


@pytest.mark.parametrize("representation", ["mask", "image"])
def test_output_has_the_input_s_size(representation):
    network = CXRNet("resnet34", representation=representation).eval()
    with torch.inference_mode():
        output = network(torch.rand(2, 1, 96, 96))
    assert output.logits.shape == output.representation_logits.shape == (2, 4)
    assert output.representation.shape == output.relevance.shape == (2, 1, 96, 96)
    assert 0 <= output.relevance.min() <= output.relevance.max() <= 1


def test_masked_representation_shows_nothing_where_the_input_is_blank():
    network = CXRNet("resnet34").eval()
    image = torch.rand(1, 1, 64, 64)
    image[..., :32] = 0
    with torch.inference_mode():
        representation = network(image).representation
    assert representation[..., :32].abs().max() == 0
    assert representation[..., 32:].max() > 0


def test_both_passes_share_one_encoder():
    network = CXRNet("resnet34").eval()
    image = torch.rand(1, 1, 64, 64)
    output = network(image)
    output.representation_logits.sum().backward()
    gradient = network.encoder.layer4[0].conv1.weight.grad
    assert gradient is not None
    assert gradient.abs().sum() > 0
    assert not any("second" in name for name, _ in network.named_parameters())
    again = network.classify(network.encode(output.representation)[-1])
    assert torch.allclose(again, output.representation_logits, atol=1e-4)


def test_one_batch_can_be_learnt_by_heart():
    torch.manual_seed(0)
    network = CXRNet("resnet34", decoder_channels=(16, 16, 8, 8, 8)).train()
    image, target = torch.rand(4, 1, 32, 32), torch.tensor([0, 1, 2, 3])
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    losses = []
    for _ in range(12):
        output = network(image)
        loss = fusion_loss(output.logits, output.representation_logits, target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_unet_answers_at_the_image_s_size_and_sums_up_its_deepest_layer():
    network = UNet((8, 16, 32)).eval()
    with torch.inference_mode():
        logits, bottleneck = network(torch.rand(2, 1, 64, 48))
    assert logits.shape == (2, 1, 64, 48)
    assert bottleneck.shape == (2, 64)
