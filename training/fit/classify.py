"""Trains CXRNet (section III-B) by a recipe, in the stages that the recipe names (see `stages`).

Differs: the paper trains everything jointly (conf/paper.toml). Training the encoder first and then the decoder reaches the same
result with a third of the arithmetic, and the batch normalisation statistics, which both passes of the shared encoder use, stay
those of real lungs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

import training.encoders  # noqa: F401 - makes them known to CXRNet
from cxr_node.analyse.enhance import classifier_input
from cxr_node.nets import weights
from cxr_node.nets.cxrnet import CXRNet
from cxr_node.records import LABELS
from training.data.classes import as_json, own_classes
from training.data.dataset import manifest_digest, read_manifest
from training.data.split import Split, load_split, load_unet
from training.errors import TrainingError
from training.fit.calibration import of_weights
from training.fit.inputs import batches, bias_of_draws
from training.fit.process_rank import ProcessRank, take_place
from training.fit.recipe import STAGES, ClassifyRecipe, OfNetwork, StageRecipe, as_table, read_recipe
from training.fit.run import Log, cosine_learning_rate, load_checkpoint, save_checkpoint
from training.fit.run_folder import claim, identity_of
from training.fit.stages import stage_of
from training.times import say

_TIMED = 5
"""Steps that are timed before it is said how long a stage takes."""


def predict_logits(network: CXRNet, split: Split, recipe: OfNetwork, batch_size: int = 16) -> NDArray[np.float32]:
    """First encoder's logits of a split as serving sees it, float32 (N, C)."""
    network.eval()
    size_px, segmented = recipe.input_size_px, recipe.segmented
    device = next(network.parameters()).device
    logits = []
    with torch.inference_mode():
        for start in range(0, len(split.rows), batch_size):
            part = slice(start, start + batch_size)
            pairs = zip(split.images[part], split.lungs[part], strict=True)
            crops = [classifier_input(image, lungs, size_px, segmented).image for image, lungs in pairs]
            batch = torch.from_numpy(np.stack(crops)).float().div(255).unsqueeze(1)
            batch = batch.to(device, memory_format=torch.channels_last)
            logits.append(network.classify(network.encode(batch)[-1]).float().cpu())
    return torch.cat(logits).numpy()


def first_network(
    recipe: OfNetwork, imagenet: Path | None, begin_with: Path | None = None, classes: Sequence[str] = LABELS
) -> CXRNet:
    """What the first stage begins with: another training's weights, or an encoder from ImageNet's, or nothing learnt yet.

    Of weights that answer from evidence the shared parts are taken; classes that the weights lack begin as nothing learnt.

    Raises:
        TrainingError: the weights are of another encoder or representation than the recipe's.
        WeightsError: a file of `begin_with` is missing or damaged.
    """
    network = CXRNet(recipe.encoder, len(classes), recipe.representation)
    if begin_with is not None:
        loaded = weights.load_cxrnet(begin_with)
        architecture = loaded.description["architecture"]
        for key in ("encoder", "representation"):
            if architecture[key] != getattr(recipe, key):
                raise TrainingError(
                    f"{begin_with} is of {key} {architecture[key]!r}, the recipe asks for {getattr(recipe, key)!r}: "
                    f"--set {key}={architecture[key]}."
                )
        if architecture.get("answer", "image") == "evidence":
            print(f"{begin_with} answers from evidence; what is trained here answers from the image (training/README.md).")
        _take_over(network, loaded, classes, begin_with)
    elif imagenet is not None:
        missing = network.encoder.load_state_dict({k: v.float() for k, v in load_file(imagenet).items()}, strict=False)
        unfit = [key for key in missing.missing_keys if not key.endswith("num_batches_tracked")]
        if unfit:
            raise TrainingError(f"{imagenet} lacks {', '.join(unfit[:5])}: is it of {recipe.encoder}?")
    return network


@torch.no_grad()
def _take_over(network: CXRNet, loaded: weights.LoadedNetwork, classes: Sequence[str], folder: Path) -> None:
    """Have a network be as loaded weights are, its head's rows by the names of the classes."""
    own, theirs = network.state_dict(), loaded.network.state_dict()
    head = {"fc.weight", "fc.bias"}
    unfit = [key for key in own if key not in head and (key not in theirs or theirs[key].shape != own[key].shape)]
    if unfit:
        raise TrainingError(f"{folder} lacks {', '.join(unfit[:3])} in the form that is trained: begin with other weights.")
    for key in own:
        if key not in head:
            own[key].copy_(theirs[key])
            continue
        for index, name in enumerate(loaded.description["classes"]):
            if name in classes:
                own[key][classes.index(name)].copy_(theirs[key][index])


def train(
    recipe_path: Path,
    data: Path,
    segment: Path | None,
    imagenet: Path | None,
    out: Path,
    without: str = "",
    begin_with: Path | None = None,
) -> None:
    """Train by the recipe, resuming from OUT/checkpoint.pt if it is there; the network ends as OUT/last.pt.

    Args:
        recipe_path: TOML, see conf/classify.toml.
        data: folder of the manifest.
        segment: best.pt of `segment`, or a folder of weights; not used where the recipe asks for nothing of the lungs.
        imagenet: safetensors that the encoder starts from; None: from random weights.
        out: folder of checkpoints and logs.
        without: a source that is left out of everything, to be evaluated on afterwards.
        begin_with: folder of weights to go on from, such as the shipped ones, instead of `imagenet`.

    Raises:
        TrainingError: no radiograph of the training split is of the source to be left out, or the recipe keeps a share of what
            training began with and there is no such thing; see also `first_network`.
    """
    recipe = read_recipe(recipe_path, ClassifyRecipe)
    if recipe.initial_weights_share and begin_with is None:
        raise TrainingError(
            "The recipe keeps a share of what training began with (initial_weights_share): name it with --begin-with."
        )
    if without and without not in (sources := {row.source for row in read_manifest(data, "train")}):
        raise TrainingError(f"{without!r} is no source of the training split; these are: {', '.join(sorted(sources))}")
    own = own_classes(data)
    classes = (*LABELS, *(one.name for one in own))
    claim(out, identity_of(data, without, begin_with, imagenet))
    if (finished := load_checkpoint(out / "last.pt")) is not None and finished.get("recipe") == as_table(recipe):
        print(f"{out / 'last.pt'} is there: this run has finished. Another --out begins a new one.")
        return
    place = take_place(recipe.threads)
    torch.manual_seed(recipe.seed)
    unet = load_unet(segment) if segment is not None and recipe.needs_lungs else None
    splits = tuple(load_split(data, name, unet, out).without(without) for name in ("train", "val"))
    network = first_network(recipe, imagenet, begin_with, classes)
    begun = _begun(network, begin_with)
    state = load_checkpoint(out / "checkpoint.pt") or {"stage": 0, "step": 0}
    if "network" in state:
        network.load_state_dict(state["network"])
    network = network.to(place.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    classifying = [name for name in STAGES if recipe.stage(name) is not None and name != "decoder_stage"]
    for number, name in enumerate(STAGES):
        if (table := recipe.stage(name)) is not None and number >= state["stage"]:
            _train_stage(network, recipe, table, name, (splits[0], splits[1]), out, place, state)
            if name in classifying[-1:]:  # the decoder finds the classifier as it will be served
                with torch.no_grad():
                    network.fc.bias += torch.from_numpy(bias_of_draws(splits[0].rows, recipe)).to(network.fc.bias)
                _blend(network, begun, recipe.initial_weights_share)
    if place.first:
        described = {
            "recipe": as_table(recipe),
            "data": manifest_digest(data),
            "without": without,
            "begun_with": weights.model_of(begin_with).digest if begin_with else "",
            "begun": of_weights(weights.network_description(begin_with, "cxrnet")) if begin_with else {},
            "classes": list(classes),
            "own_classes": as_json(own),
        }
        save_checkpoint(out / "last.pt", {"network": network.state_dict(), **described})


def _begun(network: CXRNet, begin_with: Path | None) -> dict[str, Tensor]:
    """What of the network is as the weights were that training began with; a head of weights that don't answer by it isn't."""
    if begin_with is None:
        return {}
    by_image = weights.network_description(begin_with, "cxrnet")["architecture"].get("answer", "image") == "image"
    return {key: one.clone() for key, one in network.state_dict().items() if by_image or not key.startswith("fc.")}


@torch.no_grad()
def _blend(network: CXRNet, begun: dict[str, Tensor], share: float) -> None:
    """Have the network be by `share` (0..1) what it began as, if that is given.

    The mean of weights before and after a training that began with them keeps what either is good at (cf. Wortsman et
    al. 2022): what was learnt of other looks, and what was known of radiographs as they are.
    """
    for key, tensor in network.state_dict().items() if share else ():
        if key in begun and tensor.is_floating_point():
            tensor.lerp_(begun[key].to(tensor), share)


Tensors = tuple[Tensor, ...] | list[Tensor]


def running_average(decay: float) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    """How AveragedModel follows the network: what is older counts `decay` times as much at each step.

    In the first steps it forgets faster, about a tenth of what was averaged so far: a short stage would else end as a
    network that is still near to what it began as.
    """

    @torch.no_grad()
    def follow(averaged: Tensors, current: Tensors, steps: Tensor | int) -> None:
        count = int(steps)
        weight = 1 - min(decay, (1 + count) / (10 + count))
        for old, new in zip(averaged, current, strict=True):
            if old.is_floating_point():
                old.lerp_(new.to(old.dtype), weight)
            else:  # a count of batches
                old.copy_(new)

    return follow


def _train_stage(
    network: CXRNet,
    recipe: ClassifyRecipe,
    table: StageRecipe,
    name: str,
    splits: tuple[Split, Split],
    out: Path,
    place: ProcessRank,
    state: dict[str, Any],
) -> None:
    """One stage from where `state` left it; the network ends as the running average of its last steps.

    Over 60 lines: a training loop reads from top to bottom.
    """
    stage, number = stage_of(name, network, recipe), STAGES.index(name)
    shared = place.share(stage)
    average = AveragedModel(network, multi_avg_fn=running_average(recipe.ema_decay), use_buffers=True)
    optimiser = torch.optim.AdamW(stage.trained(), lr=table.learning_rate, weight_decay=recipe.weight_decay)
    first_step = 0
    if number == state["stage"]:
        first_step = state["step"]
        if "optimiser" in state:
            optimiser.load_state_dict(state["optimiser"])
        if "average" in state:
            average.load_state_dict(state["average"])
    steps = table.images // (recipe.batch_size * place.world)
    first_size_px = table.first_size_px or recipe.input_size_px
    drawn = batches(splits[0], recipe, first_size_px, range(first_step, steps), number, place)
    bar = tqdm(drawn, initial=first_step, total=steps, desc=name, mininterval=15, disable=not place.first)
    log = Log(out / name) if place.first else None
    figures: list[dict[str, float]] = []
    started = time.monotonic()
    for step, (image, lungs, target) in enumerate(bar, start=first_step):
        stage.ready()
        rate = cosine_learning_rate(step, steps, table.learning_rate, table.final_learning_rate, min(100, steps // 10))
        for group in optimiser.param_groups:
            group["lr"] = rate
        with place.autocast():
            loss, row = shared(image, lungs, target)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        average.update_parameters(network)
        if step == first_step + _TIMED and place.first:
            say(f"{name}: {steps - first_step} steps", (time.monotonic() - started) / (_TIMED + 1) * (steps - first_step))
        figures.append({"loss": loss.item(), **{key: value.item() for key, value in row.items()}})
        if log is None or ((step + 1) % 50 and step + 1 < steps):
            continue
        means = {key: float(np.mean([row[key] for row in figures])) for key in figures[0]}
        print(name, step + 1, {key: round(value, 4) for key, value in means.items()}, flush=True)
        figures.clear()
        log.write(step + 1, {**means, "rate": rate, "seconds": time.monotonic() - started})
        save_checkpoint(
            out / "checkpoint.pt",
            {
                "network": network.state_dict(),
                "average": average.state_dict(),
                "optimiser": optimiser.state_dict(),
                "stage": number,
                "step": step + 1,
            },
        )
        if len(splits[1].rows) and name != "decoder_stage" and ((step + 1) % 500 == 0 or step + 1 == steps):
            logits = predict_logits(cast("CXRNet", average.module), splits[1], recipe)
            accuracy = float((logits.argmax(1) == splits[1].targets).mean())
            print(name, step + 1, {"val_accuracy": round(accuracy, 4)}, flush=True)
            Log(out).write(step + 1, {"val_accuracy": accuracy, "seconds": time.monotonic() - started})
    if first_step < steps or "average" in state:
        network.load_state_dict(average.module.state_dict())
