"""The networks in OpenVINO, which computes them faster on CPUs than torch does: the same weights, converted when they are loaded.

In int8, CXRNet's convolutions compute on 8-bit numbers. The weights are rounded as they are; how far the activations
reach was measured on radiographs (`python -m training quantise`) and comes with the weights. The U-Net, a tenth of the
arithmetic, stays as it is, for the gate judges by its deepest layer.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cxr_node.errors import SettingsError, WeightsError
from cxr_node.nets.cxrnet import CXRNet
from cxr_node.nets.unet import UNet

if TYPE_CHECKING:
    from openvino import Model, Node, Output

_INT8_STEPS = 255
_MULTIPLIED = ("Convolution", "MatMul")


class OpenVINOEngine:
    """Segments and classifies on the CPU.

    Args:
        unet, cxrnet: in evaluation mode, on the CPU.
        network_size_px, input_size_px: side of what each of them gets.
        precision: "fp32", "bf16" or "int8".
        activations: for int8, `int8.activations` of the weights' JSON.

    Raises:
        SettingsError: OpenVINO is not installed.
        WeightsError: the ranges of the activations are those of another network.
    """

    def __init__(
        self,
        unet: UNet,
        cxrnet: CXRNet,
        network_size_px: int,
        input_size_px: int,
        precision: str,
        activations: list[dict[str, Any]] | None = None,
    ) -> None:
        classifier = convert(_Served(cxrnet), input_size_px)
        if precision == "int8":
            quantise(classifier, activations or [])
        self._segment = compiled(convert(unet, network_size_px), precision)
        self._classify = compiled(classifier, precision)

    def segment(self, images: Iterable[NDArray[np.uint8]]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Lung logits, float32 (N, 1, H, W), and bottlenecks, float32 (N, K), of images uint8 (H, W)."""
        logits, bottlenecks = self._segment([_batch(images)]).values()
        return logits, bottlenecks

    def classify(self, crops: Iterable[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        """What `CXRNet.serve` gives, float32 each, of crops uint8 (S, S)."""
        return list(self._classify([_batch(crops)]).values())


def convert(network: nn.Module, size_px: int) -> Model:
    """A network in evaluation mode as a model that takes any number of images of one size.

    Raises:
        SettingsError: OpenVINO is not installed.
    """
    openvino = _openvino()
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # the sizes that tracing takes for constants are constant
        model: Model = openvino.convert_model(
            network.eval(),
            example_input=torch.zeros(1, 1, size_px, size_px),
            input=[openvino.PartialShape([-1, 1, size_px, size_px])],
        )
    return model


def compiled(model: Model, precision: str) -> Any:
    """The model ready to run on as many threads as this process may use cores. What int8 leaves over is computed in fp32."""
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "INFERENCE_NUM_THREADS": max(1, len(os.sched_getaffinity(0))),
        "PERFORMANCE_HINT": "LATENCY",
    }
    return _openvino().Core().compile_model(model, "CPU", settings)


def activation_ranges(cxrnet: CXRNet, size_px: int, crops: Iterable[NDArray[np.uint8]]) -> list[dict[str, Any]]:
    """How far what each convolution gets reaches, on the mean over crops uint8 (S, S): `shape` of its weights, `low`, `high`."""
    openvino = _openvino()
    opset = openvino.opset13
    model = convert(_Served(cxrnet), size_px)
    multiplied = _multiplied(model)
    extremes = []
    for node in multiplied:
        given = node.input_value(0)
        axes = opset.constant(np.arange(given.get_partial_shape().rank.get_length()))
        extremes += [opset.reduce_min(given, axes, False), opset.reduce_max(given, axes, False)]
    probe = compiled(openvino.Model(extremes, model.get_parameters()), "fp32")
    found = np.array([[float(value) for value in probe([_batch([crop])]).values()] for crop in crops]).mean(axis=0)
    return [
        {"shape": _weight_shape(node), "low": round(float(low), 5), "high": round(float(high), 5)}
        for node, low, high in zip(multiplied, found[::2], found[1::2], strict=True)
    ]


def quantise(model: Model, activations: list[dict[str, Any]]) -> None:
    """Have every convolution of the model compute in int8: activations by their ranges, weights by each channel's largest.

    Raises:
        WeightsError: `activations` are of another network.
    """
    opset = _openvino().opset13
    multiplied = _multiplied(model)
    if [one.get("shape") for one in activations] != [_weight_shape(node) for node in multiplied]:
        raise WeightsError(
            'The ranges for int8 in cxrnet.json are missing or of another network: run "python -m training quantise", '
            'or set inference.precision to "auto".'
        )
    rounded: dict[tuple[str, int], Output] = {}  # what two convolutions share is rounded once
    for node, one in zip(multiplied, activations, strict=True):
        given, weights = node.input_value(0), node.input_value(1)
        place = (given.get_node().get_name(), given.get_index())
        if place not in rounded:
            low, high = _with_zero(one["low"], one["high"])
            rounded[place] = opset.fake_quantize(given, low, high, low, high, _INT8_STEPS + 1).output(0)
        node.input(0).replace_source_output(rounded[place])
        values = weights.get_node().get_data()
        largest = np.maximum(np.abs(values).max(axis=tuple(range(1, values.ndim)), keepdims=True), 1e-8).astype(np.float32)
        quantised = opset.fake_quantize(weights, -largest, largest, -largest, largest, _INT8_STEPS)
        node.input(1).replace_source_output(quantised.output(0))
    model.validate_nodes_and_infer_types()


def _openvino() -> Any:
    """The library, kept from reporting to its makers that it is used.

    Raises:
        SettingsError: it is not installed.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
        import openvino.opset13
    except ImportError as error:
        raise SettingsError(
            'inference.engine is "openvino", which is not installed: pip install "cxr_node[openvino]", or set "torch".'
        ) from error
    return openvino


class _Served(nn.Module):
    """What of CXRNet serving asks for."""

    def __init__(self, cxrnet: CXRNet) -> None:
        super().__init__()
        self.cxrnet = cxrnet

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return self.cxrnet.serve(image)


def _batch(images: Iterable[NDArray[np.uint8]]) -> NDArray[np.float32]:
    return np.stack(list(images))[:, None].astype(np.float32) / np.float32(255)


def _multiplied(model: Model) -> list[Node]:
    """The nodes that multiply by weights, in the order of computation."""
    nodes = (node for node in model.get_ordered_ops() if node.get_type_name() in _MULTIPLIED)
    return [node for node in nodes if node.input_value(1).get_node().get_type_name() == "Constant"]


def _weight_shape(node: Node) -> list[int]:
    return [int(size) for size in node.input_value(1).get_shape()]


def _with_zero(low: float, high: float) -> tuple[np.float32, np.float32]:
    """A range that holds 0 on one of its 256 levels, so that nothing stays nothing."""
    low, high = min(low, 0.0), max(high, 1e-6)
    step = (high - low) / _INT8_STEPS
    levels_below = round(-low / step)
    return np.float32(-levels_below * step), np.float32((_INT8_STEPS - levels_below) * step)
