"""One split of the manifest in memory, with lungs segmented by the U-Net as in serving."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cxr_node.analyse.segment import clean_mask
from cxr_node.nets import weights
from cxr_node.nets.unet import UNet
from training.data.dataset import ManifestRow, load_images, manifest_digest, read_manifest
from training.errors import TrainingError
from training.fit.segment import predict_masks


@dataclass(frozen=True)
class Split:
    """One split in memory: rows, prepared images uint8 (N, 224, 224) and lung masks bool (N, 224, 224)."""

    rows: list[ManifestRow]
    images: NDArray[np.uint8]
    lungs: NDArray[np.bool_]

    @property
    def targets(self) -> NDArray[np.int64]:
        """Class indices, int64 (N,)."""
        return np.array([row.class_index for row in self.rows], np.int64)

    def without(self, source: str) -> Split:
        """The split less the rows of a source ("": all of it)."""
        kept = np.array([not source or row.source != source for row in self.rows])
        return Split([row for row, keep in zip(self.rows, kept, strict=True) if keep], self.images[kept], self.lungs[kept])


def load_unet(path: Path) -> UNet:
    """A U-Net from a training checkpoint (best.pt of `segment`), or from a folder of weights such as the shipped ones.

    Raises:
        TrainingError: there is nothing.
        WeightsError: the weights are damaged.
    """
    if not path.exists():
        raise TrainingError(
            f"No lung U-Net at {path}: name one with --segment, such as the shipped one (--segment cxr_node/nets/weights), "
            "or make one with `python -m training segment`."
        )
    if path.is_dir():
        shipped = weights.load_unet(path).network
        return shipped.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]
    state = torch.load(path, map_location="cpu", weights_only=True)
    network = UNet(tuple(state["widths"]), state["patch"])
    network.load_state_dict(state["network"])
    return network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def network_digest(network: nn.Module) -> str:
    """SHA-256 of a network's parameters and buffers."""
    digest = hashlib.sha256()
    for tensor in network.state_dict().values():
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def load_split(data: Path, split: str, unet: UNet | None, run: Path) -> Split:
    """Prepare a split; lungs as serving finds them, kept beside the folder `run` for every run with this U-Net.

    Without a U-Net, everything is lung.
    """
    rows = read_manifest(data, split)
    if not rows:
        raise TrainingError(
            f"{data / 'manifest.csv'} has no radiograph of the split {split!r}: import more patients, or say in a CSV file which "
            "patient is in which split (`split` in training/README.md)."
        )
    images = load_images(data, rows)
    if unet is None:
        return Split(rows, images, np.ones(images.shape, np.bool_))
    file = run.parent / "lungs" / f"{split}-{manifest_digest(data)[:12]}-{network_digest(unet)[:12]}.npy"
    if file.exists():
        lungs = np.unpackbits(np.load(file), axis=-1).astype(bool)
    else:
        lungs = np.stack([clean_mask(mask) for mask in predict_masks(unet, images)])
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}.npy")  # several processes may do the same
        np.save(temporary, np.packbits(lungs, axis=-1))
        temporary.replace(file)
    return Split(rows, images, lungs)
