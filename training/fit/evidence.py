"""Trains CXRNet to answer from evidence: the decoder predicts radiologists' marks, the second pass the type of pneumonia.

Differs: the paper's decoder learns from labels only. The appearance of a whole image reveals its hospital; the appearance of a
location in the lungs does so less, so the answer is based on locations.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from cxr_node.nets import weights
from cxr_node.nets.cxrnet import CXRNet, pooled_evidence
from cxr_node.records import LABELS
from training.data.dataset import manifest_digest
from training.data.evidence_labels import OTHER, UNSPECIFIED
from training.data.evidence_set import KnownRadiograph, load_examples
from training.data.split import load_unet
from training.errors import TrainingError
from training.fit.calibration import of_weights
from training.fit.classify import running_average
from training.fit.evidence_inputs import Batch, Groups, batches
from training.fit.process_rank import take_place
from training.fit.recipe import EvidenceRecipe, as_table, read_recipe
from training.fit.run import Log, cosine_learning_rate, load_checkpoint, save_checkpoint
from training.fit.run_folder import claim, identity_of

PNEUMONIAS = LABELS[1:]

_MOST_HIDDEN = 0.3
"""Of the lungs: where more was taken away, the image need not show its disease any more."""


def first_network(recipe: EvidenceRecipe, begin_with: Path | None, imagenet: Path | None = None) -> CXRNet:
    """What training begins with: other weights and what they lack for answers from evidence, or an encoder from ImageNet's.

    Raises:
        TrainingError: neither is given.
        WeightsError: a file of `begin_with` is missing or damaged.
    """
    network = CXRNet(recipe.encoder, representation=recipe.representation, answer="evidence")
    fresh = True
    if begin_with is not None:
        loaded = weights.load_cxrnet(begin_with)
        network.load_state_dict(loaded.network.state_dict(), strict=False)
        fresh = loaded.description["architecture"].get("answer", "image") == "image"
    elif imagenet is not None:
        network.encoder.load_state_dict({key: value.float() for key, value in load_file(imagenet).items()}, strict=False)
    else:
        raise TrainingError("Evidence begins with weights (--begin-with) or with ImageNet's (--imagenet): name one of them.")
    if fresh:
        with torch.no_grad():
            assert network.draw.bias is not None
            network.draw.bias.fill_(-1.0)
            for head in (network.which, network.other):
                head.weight.mul_(0.1)
                head.bias.zero_()
    return network.requires_grad_(True)


class RestingBatchNorm(nn.BatchNorm2d):
    """Batch normalisation by what it has learnt already, as a plain scale and shift: in training far cheaper on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same."""
        assert self.running_var is not None
        assert self.running_mean is not None
        with torch.no_grad():
            scale = self.weight * torch.rsqrt(self.running_var + self.eps)
            shift = self.bias - self.running_mean * scale
            scale, shift = (part.to(x.dtype).view(1, -1, 1, 1) for part in (scale, shift))
        return x * scale + shift


def prepare_to_train(network: CXRNet, at_rest: Sequence[str]) -> None:
    """Training mode, but for what is `at_rest` and for the encoder's batch normalisation, which both passes share."""
    network.train()
    for module in network.encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = RestingBatchNorm
            module.eval().requires_grad_(False)
    for name in at_rest:
        network.get_submodule(name).requires_grad_(False)


def location_loss(item: KnownRadiograph, evidence: Tensor, score: Tensor, lung: Tensor, mark: Tensor, cold: Tensor) -> Tensor:
    """What the evidence of one image should be.

    Args:
        item: what is known of the image.
        evidence: float (H, W), log-odds.
        score: float (), pooled.
        lung: bool (H, W).
        mark: bool (H, W), what radiologists marked.
        cold: bool (H, W), what was taken away of the image.
    """
    loss = F.softplus(evidence[cold]).mean() * 0.5 if cold.any() else evidence.new_zeros(())
    hidden = float((cold & lung).sum() / lung.sum().clamp_min(1))
    if not item.mark:
        if item.label in ("healthy", OTHER):  # cold everywhere, and in healthy lungs above all
            loss = loss + F.softplus(evidence).mean()
            if item.label == "healthy" and lung.any():
                loss = loss + F.softplus(evidence[lung]).mean()
            return loss + (1.0 if item.label == "healthy" else 0.5) * F.softplus(score)
        surely = 0.5 if item.label == UNSPECIFIED else 0.8  # reports by text mining are wrong for one in three
        found = surely * F.softplus(-score) if hidden <= _MOST_HIDDEN else loss * 0
        return loss + found + 0.3 * F.softplus(evidence[~lung]).mean()
    inside = mark & lung
    if item.kind == "box":  # somewhere in the box: its stronger half
        if inside.sum() > 30:
            loss = loss + F.softplus(-evidence[inside].topk(int(0.5 * inside.sum())).values).mean()
    elif mark.any():
        loss = loss + F.softplus(-evidence[mark]).mean()
    elsewhere = lung & ~mark
    if item.complete and elsewhere.any():
        loss = loss + F.softplus(evidence[elsewhere]).mean()
        if inside.sum() > 50 and elsewhere.sum() > 50:  # the order itself: marked above unmarked, wherever the level is
            count = 400
            some = evidence[inside][torch.randint(int(inside.sum()), (count,))]
            others = evidence[elsewhere][torch.randint(int(elsewhere.sum()), (count,))]
            loss = loss + 0.5 * F.softplus(others - some).mean()
    if (~mark & ~lung).any():
        loss = loss + 0.3 * F.softplus(evidence[~mark & ~lung]).mean()
    if hidden <= _MOST_HIDDEN and mark.sum() > 50:
        loss = loss + 0.2 * F.softplus(-score)
    return loss


def type_loss(items: list[KnownRadiograph], logits: Tensor, hidden: Tensor) -> Tensor:
    """Cross-entropy of the pneumonia's kind; where no germ is named it is bacterial or viral, by their sum."""
    counted = [k for k, gone in enumerate(hidden.tolist()) if gone <= _MOST_HIDDEN]
    losses = type_losses([items[k] for k in counted], logits[counted]) if counted else logits[:0, 0]
    return losses.mean() if len(losses) else logits.sum() * 0


def type_losses(items: list[KnownRadiograph], logits: Tensor) -> Tensor:
    """The same of each image with pneumonia, float (N,); 0 of others."""
    allowed = torch.zeros_like(logits, dtype=torch.bool)
    for row, item in enumerate(items):
        if item.label in PNEUMONIAS:
            allowed[row, PNEUMONIAS.index(item.label)] = True
        else:  # no germ is named: bacterial or viral; without pneumonia: any
            allowed[row, : 2 if item.label == UNSPECIFIED else 3] = True
    return -torch.logsumexp(F.log_softmax(logits, dim=1).masked_fill(~allowed, -torch.inf), dim=1)


def other_loss(items: list[KnownRadiograph], logits: Tensor) -> Tensor:
    """Whether there is a disease that isn't opacity: within the source that has both, and less firmly elsewhere."""
    truth = torch.tensor([float(item.label == OTHER) for item in items], device=logits.device)
    sure = torch.tensor([1.0 if item.source == "nih" else 0.25 for item in items], device=logits.device)
    return (sure * F.binary_cross_entropy_with_logits(logits, truth, reduction="none")).sum() / sure.sum()


def size_at(sizes: Sequence[tuple[float, int]], share: float) -> int:
    """Side of the inputs, in pixels, when `share` (0..1) of the time is gone: the last of [from this share on, this side]."""
    return int([size for begin, size in sizes if begin <= share][-1])


def downscaled(batch: Batch, size_px: int) -> Batch:
    """The batch at a smaller size: what small images teach they teach in less time."""
    if batch.image.shape[-1] == size_px:
        return batch
    masks = torch.stack([batch.lungs, batch.marks, batch.cold], dim=1).float()
    lungs, marks, cold = F.interpolate(masks, size=size_px, mode="nearest").bool().unbind(1)
    image = F.interpolate(batch.image, size=size_px, mode="bilinear", antialias=True, align_corners=False)
    return Batch(image, lungs, marks, cold, batch.items)


def losses_of(network: CXRNet, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Losses of the evidence, of the kind of pneumonia and of other disease."""
    features = network.encode(batch.image)
    evidence = network.draw_logits(features, batch.image)
    pooled = features[-1].mean((2, 3))
    ill = [index for index, item in enumerate(batch.items) if item.label in PNEUMONIAS or item.label == UNSPECIFIED]
    which = None
    if ill:
        second = network.second_pass(batch.image[ill], evidence[ill].detach())  # evidence isn't bent to tell kinds apart
        which = network.type_logits(pooled[ill], second).float()
    other = network.other(pooled).float()[:, 0]
    evidence = evidence.float()
    scores = pooled_evidence(evidence, batch.lungs.unsqueeze(1))
    places = [
        location_loss(item, evidence[k, 0], scores[k], batch.lungs[k], batch.marks[k], batch.cold[k])
        for k, item in enumerate(batch.items)
    ]
    inside = (batch.lungs & batch.cold).sum((1, 2)) / batch.lungs.sum((1, 2)).clamp_min(1)
    kinds = type_loss([batch.items[k] for k in ill], which, inside[ill]) if which is not None else other.sum() * 0
    return torch.stack(places).mean(), kinds, other_loss(batch.items, other)


def train(  # noqa: PLR0915 - a training loop that reads from top to bottom
    recipe_path: Path,
    data: Path,
    segment: Path,
    begin_with: Path | None,
    out: Path,
    without: str = "",
    imagenet: Path | None = None,
) -> None:
    """Train by the recipe for its `seconds`, resuming from OUT/checkpoint.pt; the network ends as OUT/last.pt.

    Args:
        recipe_path: TOML, see conf/evidence.toml.
        data: folder of the manifests and marks.
        segment: best.pt of `segment`, or a folder of weights.
        begin_with: folder of weights to go on from; None: `imagenet`.
        out: folder of checkpoints and logs.
        without: a source that is left out of everything, to be measured on afterwards.
        imagenet: safetensors that the encoder starts from, instead.

    Over 60 lines: a training loop reads from top to bottom.
    """
    recipe = read_recipe(recipe_path, EvidenceRecipe)
    claim(out, identity_of(data, without, begin_with, imagenet))
    place = take_place(recipe.threads)
    torch.manual_seed(recipe.seed)
    examples = load_examples(data, "train", load_unet(segment), out.parent / "cache", without)
    groups = Groups(examples, recipe.shares)
    network = first_network(recipe, begin_with, imagenet).to(place.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = AveragedModel(network, multi_avg_fn=running_average(recipe.ema_decay), use_buffers=True)
    rates = (recipe.encoder_learning_rate, recipe.decoder_learning_rate)
    prepare_to_train(network, recipe.at_rest)
    of_encoder = list(network.encoder.parameters())
    known = {id(parameter) for parameter in of_encoder}
    rest = [parameter for parameter in network.parameters() if id(parameter) not in known]
    optimiser = torch.optim.AdamW([{"params": of_encoder}, {"params": rest}], lr=rates[0], weight_decay=recipe.weight_decay)
    state = load_checkpoint(out / "checkpoint.pt") or {"step": 0, "seconds": 0.0}
    if "network" in state:
        network.load_state_dict(state["network"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
    step, gone, log, kept = state["step"], state["seconds"], Log(out), time.monotonic()
    figures: list[list[float]] = []
    drawn = batches(groups, recipe, step, place.rank)
    while gone < recipe.seconds:
        began = time.monotonic()
        batch = next(drawn)
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = cosine_learning_rate(int(gone), int(recipe.seconds), rate, rate / 100) * min(1.0, (step + 1) / 40)
        batch = downscaled(batch, size_at(recipe.sizes_px, gone / recipe.seconds))
        masks = [place.put(mask) for mask in (batch.lungs, batch.marks, batch.cold)]
        batch = Batch(place.put(batch.image), masks[0], masks[1], masks[2], batch.items)
        with place.autocast():
            parts = losses_of(network, batch)
        loss = parts[0] + 0.7 * parts[1] + 0.3 * parts[2]
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
        for parameter in learning:  # a batch may have nothing that a head learns from
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        took = place.agree([parameter.grad for parameter in learning if parameter.grad is not None], time.monotonic() - began)
        nn.utils.clip_grad_norm_(learning, 5.0)
        optimiser.step()
        average.update_parameters(network)
        step += 1
        gone += took
        figures.append([float(part.detach()) for part in parts])
        if step % 25 == 0:
            means = dict(zip(("evidence", "which", "other"), map(float, np.mean(figures, axis=0)), strict=True))
            figures.clear()
            if place.first:
                log.write(step, {**means, "seconds": gone})
                print(step, round(gone), {key: round(value, 3) for key, value in means.items()}, flush=True)
        if place.first and time.monotonic() - kept > recipe.checkpoint_seconds:
            kept = time.monotonic()
            states = {"network": network.state_dict(), "average": average.state_dict(), "optimiser": optimiser.state_dict()}
            save_checkpoint(out / "checkpoint.pt", {**states, "step": step, "seconds": gone})
    if place.first:
        save_checkpoint(
            out / "last.pt",
            {
                "network": average.module.state_dict(),
                "recipe": as_table(recipe),
                "data": manifest_digest(data),
                "without": without,
                "begun_with": weights.model_of(begin_with).digest if begin_with else "",
                "begun": of_weights(weights.network_description(begin_with, "cxrnet")) if begin_with else {},
                "steps": step,
            },
        )
