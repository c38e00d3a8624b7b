"""The networks in OpenVINO, which is faster than torch on CPUs; converted from the same weights.

Loads no torch: a child process converts the networks once (`analyse.openvino_convert`). In int8, CXRNet's convolutions
compute on 8-bit numbers. The weights are rounded; the ranges of the activations were measured on radiographs
(`python -m training quantise`) and are stored with the weights. The U-Net, a tenth of the arithmetic, is not quantised, because
the gate uses its deepest layer.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cxr_node.errors import SettingsError, WeightsError
from cxr_node.nets.weights import model_of
from cxr_node.security.nofollow import open_file

if TYPE_CHECKING:
    from openvino import Model, Node, Output

NETWORKS = ("unet", "cxrnet", "side")

_INT8_STEPS = 255
_MULTIPLIED = ("Convolution", "MatMul")
_LONGEST_CONVERSION_S = 600
_LIST = "files.json"


class OpenVINOEngine:
    """Implements `analyse.networks.Engine` on the CPU.

    Args:
        models: of NETWORKS, in this order.
        precision: "fp32", "bf16" or "int8"; in int8 CXRNet's model is quantised already.
    """

    name, device = "openvino", "cpu"

    def __init__(self, models: Iterable[Model], precision: str) -> None:
        self.precision = precision
        self._segment, self._classify, self._side = (
            compiled(model, "fp32" if name == "side" else precision) for name, model in zip(NETWORKS, models, strict=True)
        )

    @classmethod
    def load(cls, weights_folder: Path, precision: str, kept: Path | None) -> OpenVINOEngine:
        """The networks of a folder of weights.

        Args:
            weights_folder: where they lie.
            precision: as above.
            kept: a folder that keeps the converted networks; None: they are converted each time.

        Raises:
            SettingsError: OpenVINO is not installed.
            WeightsError: the weights are missing or damaged, or can't be converted.
        """
        library()
        if kept is None:
            with tempfile.TemporaryDirectory() as folder:
                return cls.load(weights_folder, precision, Path(folder))
        return cls(_read(_converted(weights_folder, precision, kept)), precision)

    def segment(self, images: list[NDArray[np.uint8]]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Lung logits, float32 (N, 1, H, W), and bottlenecks, float32 (N, K), of images uint8 (H, W)."""
        logits, bottlenecks = self._segment([batch(images)]).values()
        return logits, bottlenecks

    def classify(self, crops: list[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        """What `CXRNet.serve` gives, float32 each, of crops uint8 (S, S)."""
        return list(self._classify([batch(crops)]).values())

    def side_log_odds(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Log-odds, float32 (N,), that the patient's right lies on the left of images uint8 (N, 96, 96)."""
        (log_odds,) = self._side([batch(images)]).values()
        found: NDArray[np.float32] = log_odds
        return found


def _converted(weights_folder: Path, precision: str, kept: Path) -> Path:
    """The folder with the converted networks, which a child process makes if they are not there."""
    about = [library().__version__, _program(), model_of(weights_folder).digest, "int8" if precision == "int8" else "fp32"]
    folder = kept / hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]
    kept.mkdir(mode=0o700, parents=True, exist_ok=True)
    with os.fdopen(open_file(kept / "lock", os.O_RDWR | os.O_CREAT), "r+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several workers start at once
        if _is_whole(folder):
            return folder
        for old in kept.iterdir():  # of earlier weights or versions
            if old.is_dir():
                shutil.rmtree(old)
        with tempfile.TemporaryDirectory(dir=kept) as made:
            _convert(weights_folder, precision, Path(made))
            digests = {path.name: _digest(path) for path in Path(made).iterdir()}
            (Path(made) / _LIST).write_text(json.dumps(digests))
            Path(made).rename(folder)
    return folder


def _program() -> str:
    """The digest of what the converted networks follow from beside the weights: their code, and the side network."""
    digest = hashlib.sha256()
    nets = Path(str(resources.files("cxr_node.nets")))
    for path in sorted([*nets.rglob("*.py"), *(nets / "sides").iterdir(), Path(__file__).with_name("openvino_convert.py")]):
        digest.update(f"{path.name} {path.stat().st_size}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def _convert(weights_folder: Path, precision: str, made: Path) -> None:
    command = [sys.executable, "-P", "-m", "cxr_node.analyse.openvino_convert", str(weights_folder), precision, str(made)]
    path = os.pathsep.join(entry for entry in sys.path if entry)
    reading, writing = os.pipe()  # the child ends when this closes, also if this process is killed
    try:
        done = subprocess.run(
            command,
            env={**os.environ, "PYTHONPATH": path},
            stdin=reading,
            capture_output=True,
            text=True,
            timeout=_LONGEST_CONVERSION_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise WeightsError('OpenVINO took too long to convert the weights: set inference.engine to "torch".') from error
    finally:
        os.close(reading)
        os.close(writing)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise WeightsError(said[-1] if said else 'OpenVINO could not convert the weights: set inference.engine to "torch".')


def _is_whole(folder: Path) -> bool:
    try:
        digests: dict[str, str] = json.loads((folder / _LIST).read_text())
        return all(_digest(folder / name) == digest for name, digest in digests.items())
    except (OSError, ValueError):
        return False


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(folder: Path) -> list[Model]:
    core = library().Core()
    return [core.read_model(folder / f"{name}.xml") for name in NETWORKS]


def compiled(model: Model, precision: str) -> Any:
    """The model ready to run on as many threads as this process may use cores. What int8 leaves over is computed in fp32."""
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "INFERENCE_NUM_THREADS": max(1, len(os.sched_getaffinity(0))),
        "PERFORMANCE_HINT": "LATENCY",
    }
    return library().Core().compile_model(model, "CPU", settings)


def quantise(model: Model, activations: list[dict[str, Any]]) -> None:
    """Have every convolution of the model compute in int8: activations by their ranges, weights by each channel's largest.

    Raises:
        WeightsError: `activations` are of another network.
    """
    opset = library().opset13
    nodes = multiplied(model)
    if [one.get("shape") for one in activations] != [weight_shape(node) for node in nodes]:
        raise WeightsError(
            'The ranges for int8 in cxrnet.json are missing or of another network: run "python -m training quantise", '
            'or set inference.precision to "auto".'
        )
    rounded: dict[tuple[str, int], Output] = {}  # what two convolutions share is rounded once
    for node, one in zip(nodes, activations, strict=True):
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


def library() -> Any:
    """The library, with its usage telemetry disabled.

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


def batch(images: Iterable[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Images uint8 (H, W) of one size to float32 (N, 1, H, W) in 0..1."""
    return np.stack(list(images))[:, None].astype(np.float32) / np.float32(255)


def multiplied(model: Model) -> list[Node]:
    """The nodes that multiply by weights, in the order of computation."""
    nodes = (node for node in model.get_ordered_ops() if node.get_type_name() in _MULTIPLIED)
    return [node for node in nodes if node.input_value(1).get_node().get_type_name() == "Constant"]


def weight_shape(node: Node) -> list[int]:
    """Of what a node multiplies by."""
    return [int(size) for size in node.input_value(1).get_shape()]


def _with_zero(low: float, high: float) -> tuple[np.float32, np.float32]:
    """A range that holds 0 on one of its 256 levels, so that 0 stays 0."""
    low, high = min(low, 0.0), max(high, 1e-6)
    step = (high - low) / _INT8_STEPS
    levels_below = round(-low / step)
    return np.float32(-levels_below * step), np.float32((_INT8_STEPS - levels_below) * step)
