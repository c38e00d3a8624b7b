"""Weight files: what is written is read back, and what is wrong is refused."""

from __future__ import annotations

import json

import pytest
import torch

from cxr_node.errors import WeightsError
from cxr_node.nets import weights
from cxr_node.nets.cxrnet import CXRNet
from cxr_node.nets.unet import UNet
from cxr_node.records import LABELS

_UNET = {"name": "lung-unet", "version": "t", "architecture": {"widths": [8, 16], "patch": 2}}


@pytest.fixture
def folder(tmp_path):
    network = UNet((8, 16))
    weights.save(tmp_path, "unet", network, _UNET)
    return tmp_path


def test_a_reloaded_network_gives_equal_outputs(tmp_path):
    network = CXRNet("resnet34", decoder_channels=(16, 16, 8, 8, 8)).eval()
    description = {
        "name": "CXRNet",
        "version": "t",
        "architecture": {"encoder": "resnet34", "representation": "mask", "decoder_channels": [16, 16, 8, 8, 8]},
        "classes": list(LABELS),
    }
    weights.save(tmp_path, "cxrnet", network, description)
    once = weights.load_cxrnet(tmp_path).network
    weights.save(tmp_path, "cxrnet", once, description)
    twice = weights.load_cxrnet(tmp_path).network
    image = torch.rand(1, 1, 64, 64)
    with torch.inference_mode():
        assert torch.equal(once(image).logits, twice(image).logits)
        assert torch.allclose(once(image).logits, network(image).logits, atol=0.05)  # fp16 on disk


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"unet\.json"):
        weights.load_unet(tmp_path)


def test_a_damaged_file_is_refused(folder):
    path = folder / "unet.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="damaged"):
        weights.load_unet(folder)


def test_another_architecture_is_refused(folder):
    description = json.loads((folder / "unet.json").read_text())
    description["architecture"]["widths"] = [8, 32]
    (folder / "unet.json").write_text(json.dumps(description))
    with pytest.raises(WeightsError, match="architecture"):
        weights.load_unet(folder)


def test_shipped_weights_are_whole_and_small():
    folder = weights.shipped_folder()
    weights.load_unet(folder)
    weights.load_cxrnet(folder)
    sizes = [path.stat().st_size for path in folder.iterdir()]
    assert max(sizes) < 50e6
    assert sum(sizes) < 80e6


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, [0.0, 0.0]),
        ({"indeterminate_below": 0.4}, [0.4, 0.4]),
        ({"indeterminate_below": 1}, [1.0, 1.0]),
        ({"indeterminate_below": {"covid19_pneumonia": 0.6, "healthy": 0.9}}, [0.9, 0.6]),
    ],
)
def test_says_below_what_a_result_is_indeterminate(given, expected):
    classes = ["healthy", "covid19_pneumonia"]
    assert weights.indeterminate_below(_described(classes, **given)) == dict(zip(classes, expected, strict=True))


@pytest.mark.parametrize(
    "given", [-0.1, 1.1, "0.4", True, None, [0.4], {}, {"healthy": 0.4}, {"healthy": 1.4, "covid19_pneumonia": 0.4}]
)
def test_refuses_what_is_no_probability_of_each_class(given):
    with pytest.raises(WeightsError, match="indeterminate_below"):
        weights.indeterminate_below(_described(["healthy", "covid19_pneumonia"], indeterminate_below=given))


def _described(classes: list[str], **more: object) -> dict[str, object]:
    return {"name": "CXRNet", "version": "t", "classes": classes, **more}


TUBERCULOSIS = {"title": "Tuberculosis", "code": {"value": "56717001", "scheme": "SCT", "meaning": "Tuberculosis"}}


def test_a_class_of_the_weights_own_comes_with_its_title_and_code():
    names, (own,) = weights.classes_of(_described([*LABELS, "tuberculosis"], own_classes={"tuberculosis": TUBERCULOSIS}))
    assert names == (*LABELS, "tuberculosis")
    assert (own.name, own.title, own.code_value, own.code_scheme) == ("tuberculosis", "Tuberculosis", "56717001", "SCT")


@pytest.mark.parametrize(
    ("description", "said"),
    [
        (_described([*LABELS, "tuberculosis"]), "own_classes"),
        (_described([*LABELS, "tuberculosis"], own_classes={"tuberculosis": {"title": "Tuberculosis"}}), "own_classes"),
        (_described(["viral_pneumonia", "healthy"]), "begin with"),
        (_described([*LABELS, "healthy"]), "once"),
    ],
)
def test_classes_that_nothing_is_known_of_are_refused(description, said):
    with pytest.raises(WeightsError, match=said):
        weights.classes_of(description)
