"""Loads the networks onto a device in the precision that suits it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cxr_node.analyse.answer import AnswerRule, doubt, pooled, probabilities
from cxr_node.analyse.openvino_engine import OpenVINOEngine
from cxr_node.errors import SettingsError
from cxr_node.nets.cxrnet import CXRNet
from cxr_node.nets.unet import UNet
from cxr_node.nets.weights import indeterminate_below, load_cxrnet, load_unet, model_of, shipped_folder
from cxr_node.prepare.network_image import NETWORK_SIZE_PX
from cxr_node.records import Model
from cxr_node.settings import InferenceSettings


class Examined(NamedTuple):
    """What CXRNet says of a batch.

    probabilities: float64 (N, C), calibrated.
    relevance: float32 (N, S, S) in 0..1.
    doubts: for each image why it gets no class, however probable one is; empty: no reason.
    """

    probabilities: NDArray[np.float64]
    relevance: NDArray[np.float32]
    doubts: list[str]


@dataclass(frozen=True)
class Networks:
    """What an analysis runs on.

    precision: "fp32", "bf16", or with OpenVINO "int8".
    input_size_px: side of the image that CXRNet was trained on.
    segmented: whether it was trained on lungs cut out; else on whole images.
    temperature: logits are divided by it, so that probabilities mean what they say (Guo et al. 2017).
    indeterminate_below: a likeliest class less probable than this is called indeterminate; 0: never.
    gate: weights of the frontal gate over the U-Net's bottleneck: mean, scale, coefficients (vectors), intercept, threshold.
    openvino: computes `segment` and `examine` instead of torch, if it is there.
    answer: how answers follow from evidence; None: CXRNet's first pass answers, which knows no doubts.
    """

    unet: UNet
    cxrnet: CXRNet
    model: Model
    device: torch.device
    precision: str
    input_size_px: int
    segmented: bool
    temperature: float
    gate: dict[str, Any] | None
    stream: torch.cuda.Stream | None = None
    indeterminate_below: float = 0.0
    openvino: OpenVINOEngine | None = None
    answer: AnswerRule | None = None

    def segment(self, images: list[NDArray[np.uint8]]) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        """Where the U-Net sees lung, bool (N, H, W), and its bottlenecks, float32 (N, K), of images uint8 (H, W)."""
        if self.openvino is not None:
            found, bottlenecks = self.openvino.segment(images)
            return (found > 0)[:, 0], bottlenecks
        with self.running():
            logits, seen = self.unet(self.to_device(images))
            return (logits > 0).squeeze(1).cpu().numpy(), seen.float().cpu().numpy()

    def classify(
        self, crops: list[NDArray[np.uint8]], lungs: Sequence[NDArray[np.bool_]] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Calibrated probabilities, float64 (N, C), and relevance, float32 (N, S, S) in 0..1; see `examine`."""
        examined = self.examine(crops, lungs)
        return examined.probabilities, examined.relevance

    def examine(self, crops: list[NDArray[np.uint8]], lungs: Sequence[NDArray[np.bool_]] | None = None) -> Examined:
        """What CXRNet says of crops uint8 (S, S).

        Args:
            crops: what `classifier_input` makes.
            lungs: bool (S, S) each, where evidence counts; None: anywhere.
        """
        if self.openvino is not None:
            found = self.openvino.classify(crops)
        else:
            with self.running():
                found = [part.float().cpu().numpy() for part in self.cxrnet.serve(self.to_device(crops))]
        if self.answer is None:
            logits, relevance = found
            return Examined(self._calibrated(torch.from_numpy(logits)), relevance[:, 0], [""] * len(crops))
        evidence, which, other, distance = found
        inside = np.ones((len(crops), *evidence.shape[2:]), np.bool_) if lungs is None else np.stack(list(lungs))
        return Examined(
            probabilities(pooled(evidence[:, 0], inside), which, self.answer),
            (1 / (1 + np.exp(-evidence[:, 0]))).astype(np.float32),
            [doubt(float(one), float(far), self.answer) for one, far in zip(other, distance, strict=True)],
        )

    def _calibrated(self, logits: Tensor) -> NDArray[np.float64]:
        probabilities: NDArray[np.float64] = torch.softmax(logits.double() / self.temperature, dim=1).cpu().numpy()
        return probabilities

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run the networks in torch: without gradients, in `precision`, and on a GPU in a stream of their own."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            if self.precision == "bf16":
                stack.enter_context(torch.autocast(self.device.type, torch.bfloat16))
            if self.stream is not None:
                stack.enter_context(torch.cuda.stream(self.stream))
            yield

    def to_device(self, images: list[Any]) -> Tensor:
        """uint8 (H, W) arrays of one size to a batch float (N, 1, H, W) in 0..1 on the device; within `running`."""
        batch = torch.stack([torch.from_numpy(image) for image in images]).unsqueeze(1)
        if self.device.type == "cuda":
            batch = batch.pin_memory().to(self.device, non_blocking=True)
        return batch.float().div(255).contiguous(memory_format=torch.channels_last)


def choose_device(setting: str) -> torch.device:
    """The device that `inference.device` names; auto: the first GPU, else the CPU.

    Raises:
        SettingsError: a GPU is asked for and there is none.
    """
    if setting == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(setting)
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise SettingsError(
            f'inference.device is "{setting}" but torch sees {torch.cuda.device_count()} GPU(s): '
            'check the driver and that the CUDA build of torch is installed, or set "auto" or "cpu".'
        )
    return device


def choose_precision(settings: InferenceSettings, device: torch.device, can_int8: bool = False) -> str:
    """`inference.precision`; auto: int8 with OpenVINO where the weights allow it, else bf16 where the hardware has it, else fp32.

    Raises:
        SettingsError: OpenVINO is asked for on a GPU, or int8 without OpenVINO or of weights that don't allow it.
    """
    openvino = settings.engine == "openvino"
    if openvino and device.type != "cpu":
        raise SettingsError(f'inference.engine "openvino" is for the CPU: set inference.device to "cpu" instead of "{device}".')
    if settings.precision == "int8" and not openvino:
        raise SettingsError('inference.precision "int8" needs inference.engine "openvino".')
    if settings.precision == "int8" and not can_int8:
        raise SettingsError(
            'These weights know nothing of int8 ("python -m training quantise"): set inference.precision to "auto".'
        )
    if settings.precision != "auto":
        return settings.precision
    if openvino and can_int8:
        return "int8"
    return "bf16" if has_bf16(device) else "fp32"


def has_bf16(device: torch.device) -> bool:
    """Whether the hardware computes in bf16."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool({"avx512_bf16", "amx_bf16"} & _cpu_flags())


def load_networks(settings: InferenceSettings) -> Networks:
    """Load the weights that the settings name, ready to run.

    Raises:
        WeightsError: they are missing or damaged.
        SettingsError: the device is not there.
    """
    folder = settings.weights_dir or shipped_folder()
    device = choose_device(settings.device)
    unet, cxrnet = load_unet(folder), load_cxrnet(folder)
    precision = choose_precision(settings, device, can_int8="int8" in cxrnet.description)
    for loaded in (unet, cxrnet):
        loaded.network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert isinstance(unet.network, UNet)
    assert isinstance(cxrnet.network, CXRNet)
    input_size_px = cxrnet.description["preprocessing"]["input_size_px"]
    engine = None
    if settings.engine == "openvino":
        activations = cxrnet.description.get("int8", {}).get("activations")
        engine = OpenVINOEngine(unet.network, cxrnet.network, NETWORK_SIZE_PX, input_size_px, precision, activations)
    return Networks(
        unet.network,
        cxrnet.network,
        model_of(folder),
        device,
        precision,
        input_size_px=input_size_px,
        segmented=cxrnet.description["preprocessing"].get("segmented", True),
        temperature=cxrnet.description["calibration"]["temperature"],
        gate=unet.description.get("gate"),
        indeterminate_below=indeterminate_below(cxrnet.description),
        openvino=engine,
        answer=AnswerRule.of(cxrnet.description) if cxrnet.network.answer == "evidence" else None,
        stream=torch.cuda.Stream(device) if device.type == "cuda" else None,  # type: ignore[no-untyped-call]
    )


def _cpu_flags() -> set[str]:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return set(line.split(":", 1)[1].split())
    return set()


def use_all_cores() -> None:
    """As many threads as this process may use cores (a container's limit counts, not the machine's size)."""
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0))))
