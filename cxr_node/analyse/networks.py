"""The networks of an analysis: engine, device and precision.

Loads no torch if OpenVINO runs networks that are already converted.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from cxr_node.analyse.answer import AnswerRule, clear, doubt, heat, pooled, probabilities
from cxr_node.errors import SettingsError
from cxr_node.nets.weights import indeterminate_below, model_of, network_description, shipped_folder
from cxr_node.records import Model
from cxr_node.settings import InferenceSettings

if TYPE_CHECKING:
    from cxr_node.analyse.torch_engine import TorchEngine

_GPU_FILES = ("nvidia0", "nvidiactl", "dxg", "kfd")
"""In /dev: what drivers of GPUs that torch computes on leave there. Looked at first, since torch takes seconds to load."""


class Engine(Protocol):
    """Computes the networks; what it takes and gives are arrays."""

    @property
    def name(self) -> str:
        """What `inference.engine` calls it."""

    @property
    def device(self) -> Any:
        """Where it computes; its text is as `inference.device` has it."""

    @property
    def precision(self) -> str:
        """What `inference.precision` calls it; never "auto"."""

    def segment(self, images: list[NDArray[np.uint8]]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Lung logits, float32 (N, 1, H, W), and bottlenecks, float32 (N, K), of images uint8 (H, W)."""

    def classify(self, crops: list[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        """What `CXRNet.serve` gives, float32 each, of crops uint8 (S, S)."""

    def side_log_odds(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Log-odds, float32 (N,), that the patient's right lies on the left of images uint8 (N, 96, 96)."""


class Examined(NamedTuple):
    """What CXRNet says of a batch.

    probabilities: float64 (N, C), calibrated.
    heat: float32 (N, S, S) in 0..1.
    doubts: for each image why it gets no class, however probable one is; empty: no reason.
    """

    probabilities: NDArray[np.float64]
    heat: NDArray[np.float32]
    doubts: list[str]


@dataclass(frozen=True)
class Networks:
    """What an analysis runs on.

    engine: computes them.
    input_size_px: side of the image that CXRNet was trained on.
    segmented: whether it was trained on lungs cut out; else on whole images.
    temperature: logits are divided by it, which calibrates the probabilities (Guo et al. 2017).
    indeterminate_below: for each class, what it needs to be named where it is the likeliest; less is called indeterminate.
    gate: weights of the frontal gate over the U-Net's bottleneck: mean, scale, coefficients (vectors), intercept, threshold.
    answer: how answers follow from evidence; None: CXRNet's first pass answers, without doubts.
    """

    engine: Engine
    model: Model
    input_size_px: int
    segmented: bool
    temperature: float
    gate: dict[str, Any] | None
    indeterminate_below: dict[str, float] = field(default_factory=dict)
    answer: AnswerRule | None = None

    @property
    def torch(self) -> TorchEngine:
        """The engine, for those who need gradients or inner layers.

        Raises:
            SettingsError: another engine computes.
        """
        from cxr_node.analyse.torch_engine import TorchEngine

        if not isinstance(self.engine, TorchEngine):
            raise SettingsError('This needs inference.engine "torch".')
        return self.engine

    def segment(self, images: list[NDArray[np.uint8]]) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        """Where the U-Net sees lung, bool (N, H, W), and its bottlenecks, float32 (N, K), of images uint8 (H, W)."""
        found, bottlenecks = self.engine.segment(images)
        return (found > 0)[:, 0], bottlenecks

    def classify(
        self, crops: list[NDArray[np.uint8]], lungs: Sequence[NDArray[np.bool_]] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Calibrated probabilities, float64 (N, C), and heat, float32 (N, S, S) in 0..1; see `examine`."""
        examined = self.examine(crops, lungs)
        return examined.probabilities, examined.heat

    def examine(self, crops: list[NDArray[np.uint8]], lungs: Sequence[NDArray[np.bool_]] | None = None) -> Examined:
        """What CXRNet says of crops uint8 (S, S).

        Args:
            crops: what `classifier_input` makes.
            lungs: bool (S, S) each, where evidence counts; None: anywhere.
        """
        found = self.engine.classify(crops)
        if self.answer is None:
            logits, relevance = found
            return Examined(self._calibrated(logits), self.heat_of(relevance[:, 0]), [""] * len(crops))
        evidence, which, other, distance = found
        inside = np.ones((len(crops), *evidence.shape[2:]), np.bool_) if lungs is None else np.stack(list(lungs))
        return Examined(
            probabilities(pooled(evidence[:, 0], inside), which, self.answer),
            self.heat_of((1 / (1 + np.exp(-evidence[:, 0]))).astype(np.float32)),
            [doubt(float(one), float(far), self.answer) for one, far in zip(other, distance, strict=True)],
        )

    def heat_of(self, relevance: NDArray[np.float32]) -> NDArray[np.float32]:
        """The heat of what CXRNet's decoder draws, float32 of any shape in 0..1, like the result.

        A decoder that masks the image leaves a little everywhere, which is no heat.
        """
        return clear(relevance) if self.answer is None else heat(relevance, self.answer)

    def _calibrated(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        scaled = logits.astype(np.float64) / self.temperature
        chances = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        calibrated: NDArray[np.float64] = chances / chances.sum(axis=1, keepdims=True)
        return calibrated


def choose_device(setting: str) -> str:
    """The device that `inference.device` names; auto: the first GPU, else the CPU.

    Raises:
        SettingsError: the settings require a GPU and there is none.
    """
    if setting == "cpu":
        return setting
    if setting == "auto" and not any(Path("/dev", name).exists() for name in _GPU_FILES):
        return "cpu"
    import torch

    if setting == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(setting)
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise SettingsError(
            f'inference.device is "{setting}" but torch sees {torch.cuda.device_count()} GPU(s): '
            'check the driver and that the CUDA build of torch is installed, or set "auto" or "cpu".'
        )
    return setting


def choose_engine(settings: InferenceSettings, device: str, *, stays: bool = False) -> str:
    """Torch or OpenVINO, as `inference.engine` says; auto: OpenVINO on a CPU where it is installed, else torch.

    Args:
        settings: of the inference.
        device: to compute on.
        stays: the networks stay loaded for long. OpenVINO takes seconds to convert them, so that auto is torch otherwise.

    Raises:
        SettingsError: the settings require OpenVINO on a GPU.
    """
    if settings.engine == "openvino" and device != "cpu":
        raise SettingsError(f'inference.engine "openvino" is for the CPU: set inference.device to "cpu" instead of "{device}".')
    if settings.engine != "auto":
        return settings.engine
    wanted = stays or settings.precision == "int8"
    faster = wanted and device == "cpu" and importlib.util.find_spec("openvino") is not None
    return "openvino" if faster else "torch"


def choose_precision(settings: InferenceSettings, device: str, engine: str, can_int8: bool = False) -> str:
    """`inference.precision`; auto: int8 with OpenVINO where the weights allow it, else bf16 where the hardware has it, else fp32.

    Raises:
        SettingsError: the settings require int8 without OpenVINO, or with weights that don't allow it.
    """
    openvino = engine == "openvino"
    if settings.precision == "int8" and not openvino:
        raise SettingsError('inference.precision "int8" needs inference.engine "openvino".')
    if settings.precision == "int8" and not can_int8:
        raise SettingsError(
            'These weights have no int8 ranges ("python -m training quantise"): set inference.precision to "auto".'
        )
    if settings.precision != "auto":
        return settings.precision
    if openvino and can_int8:
        return "int8"
    return "bf16" if has_bf16(device) else "fp32"


def has_bf16(device: str) -> bool:
    """Whether the hardware computes in bf16; of "cpu" or a GPU such as "cuda:0"."""
    if device.startswith("cuda"):
        import torch

        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool({"avx512_bf16", "amx_bf16"} & _cpu_flags())


def load_networks(
    settings: InferenceSettings, *, stay: bool = False, all_cores: bool = False, converted: Path | None = None
) -> Networks:
    """Load the weights that the settings name, ready to run.

    Args:
        settings: of the inference.
        stay: the networks stay loaded for long, see `choose_engine`.
        all_cores: torch may use all cores of this process; OpenVINO does in any case.
        converted: a folder that keeps what OpenVINO converted, for the next time; None: it is converted each time.

    Raises:
        WeightsError: they are missing or damaged.
        SettingsError: the device or the engine is not there.
    """
    folder = settings.weights_dir or shipped_folder()
    device = choose_device(settings.device)
    of_unet, of_cxrnet = network_description(folder, "unet"), network_description(folder, "cxrnet")
    chosen = choose_engine(settings, device, stays=stay)
    precision = choose_precision(settings, device, chosen, can_int8="int8" in of_cxrnet)
    return Networks(
        _load_engine(chosen, folder, device, precision, all_cores=all_cores, converted=converted),
        model_of(folder),
        input_size_px=of_cxrnet["preprocessing"]["input_size_px"],
        segmented=of_cxrnet["preprocessing"].get("segmented", True),
        temperature=of_cxrnet["calibration"]["temperature"],
        gate=of_unet.get("gate"),
        indeterminate_below=indeterminate_below(of_cxrnet),
        answer=AnswerRule.of(of_cxrnet) if of_cxrnet["architecture"].get("answer") == "evidence" else None,
    )


def _load_engine(name: str, folder: Path, device: str, precision: str, *, all_cores: bool, converted: Path | None) -> Engine:
    if name == "openvino":
        from cxr_node.analyse.openvino_engine import OpenVINOEngine

        return OpenVINOEngine.load(folder, precision, converted)
    from cxr_node.analyse.torch_engine import TorchEngine, use_all_cores

    if all_cores:
        use_all_cores()
    return TorchEngine.load(folder, device, precision)


def _cpu_flags() -> set[str]:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return set(line.split(":", 1)[1].split())
    return set()
