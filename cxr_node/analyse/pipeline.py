"""From prepared radiographs to findings: segment → gate → sides → enhance → classify and explain.

Pure: arrays and networks in, findings out; no database, no file, no DICOM. The daemon, the command line and training's
evaluation all run this.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from cxr_node.analyse.enhance import LungCrop, classifier_input
from cxr_node.analyse.gate import check_frontal
from cxr_node.analyse.letters import read_marker
from cxr_node.analyse.networks import Networks
from cxr_node.analyse.segment import check_lungs, clean_mask, right_and_left, zone_rows
from cxr_node.analyse.side import classify_sides
from cxr_node.errors import Rejected
from cxr_node.records import SIDES, ZONES, Findings, LetterCandidates

_FAINT = 0.05
"""Relevance below this is not heat: the decoder leaves this much everywhere."""

_EDGE_PX = 3.0
"""Smoothing of the heat map's edges, as a standard deviation: the decoder is not accurate to the pixel."""

_SURELY_FRONTAL = 2.0
"""Margin above the gate's threshold for an image with inverted greys, so that the second attempt lets no more pass."""


def analyse(
    network_images: Sequence[NDArray[np.uint8]],
    networks: Networks,
    sides_said: Sequence[bool] | None = None,
    letters: Sequence[LetterCandidates | None] | None = None,
) -> list[Findings | Rejected]:
    """Analyse a batch.

    Args:
        network_images: uint8 (224, 224) each, from `prepare.to_network_image`.
        networks: see `analyse.networks.load_networks`.
        sides_said: of each image, whether its header says where the patient's right is (`Geometry.sides_said`); None: of all.
            An image with a silent header that is certainly mirrored is flipped first: its findings are those of the flipped
            image.
        letters: of each image, what may be the film's own letters (`Radiograph.letters`); None: of one or of all, not looked for.

    Returns:
        for each image its findings, or the reasons of its rejection (returned, not raised, so that one image doesn't affect the
        others).
    """
    if not network_images:
        return []
    started = time.perf_counter()
    images = list(network_images)
    masks, refusals = _admit(images, networks)
    # a wrong PhotometricInterpretation makes lungs white, in viewers too: such an image is inverted and analysed
    refused = list(refusals)
    inverted: set[int] = set()
    if refused and networks.gate is not None:
        turned = [np.asarray(255 - images[index], np.uint8) for index in refused]
        turned_masks, turned_refusals = _admit(turned, networks, _SURELY_FRONTAL)
        for place, index in enumerate(refused):
            if place not in turned_refusals:
                images[index], masks[index] = turned[place], turned_masks[place]
                inverted.add(index)
                del refusals[index]
    segment_s = (time.perf_counter() - started) / len(masks)
    accepted = [index for index in range(len(masks)) if index not in refusals]
    said = [True if sides_said is None else sides_said[i] for i in accepted]
    markers = [read_marker(None if letters is None else letters[i], masks[i]) for i in accepted]
    sides = classify_sides([images[i] for i in accepted], said, networks.engine.side_log_odds, markers)
    for index, judged in zip(accepted, sides, strict=True):
        if judged.mirrored:
            images[index] = np.ascontiguousarray(images[index][:, ::-1])
            masks[index] = np.ascontiguousarray(masks[index][:, ::-1])
    findings = classify_batch([images[i] for i in accepted], [masks[i] for i in accepted], networks)
    outcomes: dict[int, Findings | Rejected] = dict(refusals)
    for index, found, judged in zip(accepted, findings, sides, strict=True):
        seconds = {"segment": segment_s, **found.seconds}
        outcomes[index] = replace(found, greys_inverted=index in inverted, sides=judged, seconds=seconds)
    return [outcomes[index] for index in range(len(masks))]


def _admit(
    images: Sequence[NDArray[np.uint8]], networks: Networks, above_threshold: float = 0.0
) -> tuple[list[NDArray[np.bool_]], dict[int, Rejected]]:
    """Lungs of each image, bool (224, 224), and why some are rejected, by index."""
    masks, bottlenecks = segment_batch(images, networks)
    refusals: dict[int, Rejected] = {}
    for index, mask in enumerate(masks):
        try:
            check_lungs(mask)
            if networks.gate is not None:
                check_frontal(bottlenecks[index], mask, networks.gate, above_threshold)
        except Rejected as rejected:
            refusals[index] = rejected
    return masks, refusals


def segment_batch(
    network_images: Sequence[NDArray[np.uint8]], networks: Networks
) -> tuple[list[NDArray[np.bool_]], NDArray[np.float32]]:
    """Cleaned lung masks, bool (224, 224) each, and the features of the gate, float32 (N, 2 K)."""
    raw, bottlenecks = networks.segment(list(network_images))
    return [clean_mask(mask) for mask in raw], bottlenecks


def classify_batch(
    network_images: Sequence[NDArray[np.uint8]], lungs: Sequence[NDArray[np.bool_]], networks: Networks
) -> list[Findings]:
    """Findings of images whose lungs, bool (224, 224) each, passed the checks."""
    if not network_images:
        return []
    started = time.perf_counter()
    crops = classifier_inputs(network_images, lungs, networks)
    examined = networks.examine([crop.image for crop in crops], [crop.mask for crop in crops])
    seconds = {"classify": (time.perf_counter() - started) / len(crops)}
    return [
        replace(
            _findings(mask, crop, examined.probabilities[row], examined.relevance[row], networks, seconds),
            doubt=examined.doubts[row],
        )
        for row, (mask, crop) in enumerate(zip(lungs, crops, strict=True))
    ]


def classifier_inputs(
    network_images: Sequence[NDArray[np.uint8]], lungs: Sequence[NDArray[np.bool_]], networks: Networks
) -> list[LungCrop]:
    """What these networks' classifier gets of images whose lungs, bool (224, 224) each, are known."""
    size_px, segmented = networks.input_size_px, networks.segmented
    return [classifier_input(image, mask, size_px, segmented) for image, mask in zip(network_images, lungs, strict=True)]


def _findings(
    lungs: NDArray[np.bool_],
    crop: LungCrop,
    probabilities: NDArray[np.float64],
    relevance: NDArray[np.float32],
    networks: Networks,
    seconds: dict[str, float],
) -> Findings:
    relevance = heat_of(relevance)
    inside = relevance * crop.mask
    total = float(relevance.sum())
    heat = np.where(lungs, crop.to_prepared(inside, lungs.shape), np.float32(0))
    heatmap = np.clip(cv2.GaussianBlur(heat, (0, 0), _EDGE_PX), 0, 1).astype(np.float32) * lungs
    sides = dict(zip(SIDES, right_and_left(lungs), strict=True))
    borders = {side: zone_rows(lung) for side, lung in sides.items()}
    by_zone = _heat_by_zone(heatmap, sides, borders)
    return Findings(
        label=networks.model.classes[int(probabilities.argmax())],
        probabilities=dict(zip(networks.model.classes, (float(p) for p in probabilities), strict=True)),
        heatmap=heatmap,
        lungs=lungs,
        right_lung=sides["right"],
        heat_in_lungs=float(inside.sum()) / total if total > 0 else 1.0,
        heat_by_lung={side: sum(by_zone[side, zone] for zone in ZONES) for side in SIDES},
        heat_by_zone=by_zone,
        zone_rows=borders,
        lung_area_fraction=float(lungs.mean()),
        model=networks.model,
        indeterminate_below=networks.indeterminate_below,
        seconds=dict(seconds),
    )


def heat_of(relevance: NDArray[np.float32]) -> NDArray[np.float32]:
    """What of a relevance, float32 of any shape in 0..1, is drawn and measured as heat, of the same form."""
    return np.where(relevance < _FAINT, np.float32(0), relevance)


def _heat_by_zone(
    heatmap: NDArray[np.float32], sides: dict[str, NDArray[np.bool_]], borders: dict[str, tuple[int, int]]
) -> dict[tuple[str, str], float]:
    """Share of the heat in each zone of each lung; 0 everywhere if there is no heat at all."""
    sums: dict[tuple[str, str], float] = {}
    for side, lung in sides.items():
        by_row = (heatmap * lung).sum(axis=1, dtype=np.float64)
        for zone, part in zip(ZONES, np.split(by_row, borders[side]), strict=True):
            sums[side, zone] = float(part.sum())
    total = sum(sums.values())
    return {place: value / total if total > 0 else 0.0 for place, value in sums.items()}
