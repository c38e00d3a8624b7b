"""Loads the networks onto a device in the precision that suits it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cxr_node.errors import SettingsError
from cxr_node.nets.cxrnet import CXRNet
from cxr_node.nets.unet import UNet
from cxr_node.nets.weights import indeterminate_below, load_cxrnet, load_unet, model_of, shipped_folder
from cxr_node.records import Model
from cxr_node.settings import InferenceSettings


@dataclass(frozen=True)
class Networks:
    """What an analysis runs on.

    input_size_px: side of the image that CXRNet was trained on.
    segmented: whether it was trained on lungs cut out; else on whole images.
    temperature: logits are divided by it, so that probabilities mean what they say (Guo et al. 2017).
    indeterminate_below: a likeliest class less probable than this is called indeterminate; 0: never.
    gate: weights of the frontal gate over the U-Net's bottleneck: mean, scale, coefficients (vectors), intercept, threshold.
    """

    unet: UNet
    cxrnet: CXRNet
    model: Model
    device: torch.device
    dtype: torch.dtype
    input_size_px: int
    segmented: bool
    temperature: float
    gate: dict[str, Any] | None
    stream: torch.cuda.Stream | None = None
    indeterminate_below: float = 0.0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run the networks: without gradients, in `dtype`, and on a GPU in a stream of their own."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            if self.dtype != torch.float32:
                stack.enter_context(torch.autocast(self.device.type, self.dtype))
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


def choose_dtype(setting: str, device: torch.device) -> torch.dtype:
    """bf16 where the hardware computes in it, else fp32; `inference.precision` overrides."""
    if setting == "fp32":
        return torch.float32
    if setting == "bf16":
        return torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    flags = _cpu_flags()
    return torch.bfloat16 if {"avx512_bf16", "amx_bf16"} & flags else torch.float32


def load_networks(settings: InferenceSettings) -> Networks:
    """Load the weights that the settings name, ready to run.

    Raises:
        WeightsError: they are missing or damaged.
        SettingsError: the device is not there.
    """
    folder = settings.weights_dir or shipped_folder()
    device = choose_device(settings.device)
    dtype = choose_dtype(settings.precision, device)
    unet, cxrnet = load_unet(folder), load_cxrnet(folder)
    for loaded in (unet, cxrnet):
        loaded.network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert isinstance(unet.network, UNet)
    assert isinstance(cxrnet.network, CXRNet)
    return Networks(
        unet.network,
        cxrnet.network,
        model_of(folder),
        device,
        dtype,
        input_size_px=cxrnet.description["preprocessing"]["input_size_px"],
        segmented=cxrnet.description["preprocessing"].get("segmented", True),
        temperature=cxrnet.description["calibration"]["temperature"],
        gate=unet.description.get("gate"),
        indeterminate_below=indeterminate_below(cxrnet.description),
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
