"""Converts the networks from torch to OpenVINO, in a process of its own: torch's memory then stays out of the worker.

python -m cxr_node.analyse.openvino_convert WEIGHTS PRECISION OUT

It exits at the end of its standard input, which means that the waiting worker is gone.
"""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cxr_node.analyse.openvino_engine import NETWORKS, batch, compiled, library, multiplied, quantise, weight_shape
from cxr_node.errors import CxrNodeError
from cxr_node.nets.constants import SIDE_SIZE_PX
from cxr_node.nets.cxrnet import CXRNet
from cxr_node.nets.side import shipped_side_classifier
from cxr_node.nets.weights import load_cxrnet, load_unet
from cxr_node.prepare.network_image import NETWORK_SIZE_PX

if TYPE_CHECKING:
    from openvino import Model


class _Served(nn.Module):
    """What of CXRNet serving asks for."""

    def __init__(self, cxrnet: nn.Module) -> None:
        super().__init__()
        assert isinstance(cxrnet, CXRNet)
        self.cxrnet = cxrnet

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return self.cxrnet.serve(image)


def models_of(folder: Path, precision: str) -> dict[str, Model]:
    """The models of a folder of weights, by name, in the order of NETWORKS; in int8 CXRNet's is quantised.

    Raises:
        WeightsError: they are missing or damaged, or the ranges of the activations are those of another network.
        SettingsError: OpenVINO is not installed.
    """
    cxrnet = load_cxrnet(folder)
    classifier = convert(_Served(cxrnet.network), cxrnet.description["preprocessing"]["input_size_px"])
    if precision == "int8":
        quantise(classifier, cxrnet.description.get("int8", {}).get("activations") or [])
    side = convert(shipped_side_classifier().network, SIDE_SIZE_PX)
    return dict(zip(NETWORKS, (convert(load_unet(folder).network, NETWORK_SIZE_PX), classifier, side), strict=True))


def convert(network: nn.Module, size_px: int) -> Model:
    """A network in evaluation mode as a model that takes any number of images of one size.

    Raises:
        SettingsError: OpenVINO is not installed.
    """
    openvino = library()
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # the sizes that tracing takes for constants are constant
        model: Model = openvino.convert_model(
            network.eval(),
            example_input=torch.zeros(1, 1, size_px, size_px),
            input=[openvino.PartialShape([-1, 1, size_px, size_px])],
        )
    return model


def activation_ranges(cxrnet: CXRNet, size_px: int, crops: Iterable[NDArray[np.uint8]]) -> list[dict[str, Any]]:
    """How far what each convolution gets reaches, on the mean over crops uint8 (S, S): `shape` of its weights, `low`, `high`."""
    openvino = library()
    opset = openvino.opset13
    model = convert(_Served(cxrnet), size_px)
    nodes = multiplied(model)
    extremes = []
    for node in nodes:
        given = node.input_value(0)
        axes = opset.constant(np.arange(given.get_partial_shape().rank.get_length()))
        extremes += [opset.reduce_min(given, axes, False), opset.reduce_max(given, axes, False)]
    probe = compiled(openvino.Model(extremes, model.get_parameters()), "fp32")
    found = np.array([[float(value) for value in probe([batch([crop])]).values()] for crop in crops]).mean(axis=0)
    return [
        {"shape": weight_shape(node), "low": round(float(low), 5), "high": round(float(high), 5)}
        for node, low, high in zip(nodes, found[::2], found[1::2], strict=True)
    ]


def _end_with_input() -> None:
    while os.read(0, 1):  # not `sys.stdin`, whose lock would keep the interpreter from ending
        pass
    os._exit(1)


def main(folder: str, precision: str, out: str) -> int:
    """Write NAME.xml and NAME.bin of each network to a folder; weights stay as exact as they are."""
    torch.set_num_threads(1)  # each network is run once: on a busy machine threads that wait for each other take minutes
    threading.Thread(target=_end_with_input, daemon=True).start()
    try:
        for name, model in models_of(Path(folder), precision).items():
            library().save_model(model, str(Path(out) / f"{name}.xml"), compress_to_fp16=False)
    except CxrNodeError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
