"""The networks in torch, on a CPU or a GPU."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cxr_node.nets.cxrnet import CXRNet
from cxr_node.nets.side import shipped_side_classifier
from cxr_node.nets.unet import UNet
from cxr_node.nets.weights import load_cxrnet, load_unet


@dataclass(frozen=True)
class TorchEngine:
    """Implements `analyse.networks.Engine`.

    precision: "fp32" or "bf16".
    stream: of the GPU, so that two networks don't wait for each other.
    """

    unet: UNet
    cxrnet: CXRNet
    device: torch.device
    precision: str
    stream: torch.cuda.Stream | None = None
    name: str = "torch"

    @classmethod
    def load(cls, folder: Path, device: str, precision: str) -> TorchEngine:
        """Weights onto a device.

        Raises:
            WeightsError: they are missing or damaged.
        """
        place = torch.device(device)
        unet, cxrnet = load_unet(folder).network, load_cxrnet(folder).network
        for network in (unet, cxrnet):
            network.to(device=place, memory_format=torch.channels_last)  # type: ignore[call-overload]
        assert isinstance(unet, UNet)
        assert isinstance(cxrnet, CXRNet)
        stream = torch.cuda.Stream(place) if place.type == "cuda" else None
        return cls(unet, cxrnet, place, precision, stream)

    def segment(self, images: list[NDArray[np.uint8]]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Lung logits, float32 (N, 1, H, W), and bottlenecks, float32 (N, K), of images uint8 (H, W)."""
        with self.running():
            logits, seen = self.unet(self.to_device(images))
            return logits.float().cpu().numpy(), seen.float().cpu().numpy()

    def classify(self, crops: list[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        """What `CXRNet.serve` gives, float32 each, of crops uint8 (S, S)."""
        with self.running():
            return [part.float().cpu().numpy() for part in self.cxrnet.serve(self.to_device(crops))]

    def side_log_odds(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Log-odds, float32 (N,), that the patient's right lies on the left of images uint8 (N, 96, 96)."""
        with torch.inference_mode():
            found = shipped_side_classifier().network(torch.from_numpy(images).float().div(255).unsqueeze(1))
        log_odds: NDArray[np.float32] = found.numpy()
        return log_odds

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run the networks without gradients, in `precision`, and on a GPU in a stream of their own."""
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


def use_all_cores() -> None:
    """As many threads as this process may use cores (a container's limit counts, not the machine's size)."""
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0))))
