"""The device, the precision and the rank of a training process; `torchrun` may start several."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from cxr_node.analyse.networks import has_bf16

Made = TypeVar("Made")


@dataclass(frozen=True)
class ProcessRank:
    """One process among `world`: rank 0 writes logs and checkpoints."""

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """True for the one process that writes."""
        return self.rank == 0

    def autocast(self) -> AbstractContextManager[object]:
        """Mixed precision: bfloat16 where the GPU or the CPU computes in it, float32 elsewhere."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=has_bf16(str(self.device)))

    def put(self, tensor: Tensor) -> Tensor:
        """A batch on this process's device, channels last where it is an image."""
        if tensor.dim() == 4:
            return tensor.to(self.device, memory_format=torch.channels_last, non_blocking=True)
        return tensor.to(self.device, non_blocking=True)

    def agree(self, gradients: list[Tensor], seconds: float) -> float:
        """Have every process hold the mean of all processes' gradients, and say how long the slowest took."""
        if self.world == 1:
            return seconds
        longest = torch.tensor(seconds, device=self.device)
        distributed.all_reduce(longest, distributed.ReduceOp.MAX)
        flat = torch.cat([gradient.flatten() for gradient in gradients]).div_(self.world)
        distributed.all_reduce(flat)
        for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))
        return float(longest)

    def share(self, module: nn.Module) -> nn.Module:
        """The module, its gradients averaged over all processes."""
        return DistributedDataParallel(module) if self.world > 1 else module


def take_place(threads: int | None = None) -> ProcessRank:
    """The place of this process: the GPU that `torchrun` gave it, the only GPU, or the CPU with `threads` threads."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(local)
    elif threads is not None:
        torch.set_num_threads(max(1, threads // world))
    if world > 1 and not distributed.is_initialized():
        distributed.init_process_group("nccl" if gpu else "gloo")
    return ProcessRank(torch.device("cuda", local) if gpu else torch.device("cpu"), rank, world)


def made_ahead(make: Callable[[int], Made], steps: Iterable[int], loaders: int = 1) -> Iterator[Made]:
    """What `make` makes of each step, in order, made by `loaders` threads while what came before is used."""
    with ThreadPoolExecutor(loaders) as pool:
        remaining = iter(steps)
        waiting = deque(pool.submit(make, step) for step in islice(remaining, loaders + 1))
        try:
            while waiting:
                made = waiting.popleft().result()
                waiting.extend(pool.submit(make, step) for step in islice(remaining, 1))
                yield made
        finally:
            for one in waiting:
                one.cancel()
