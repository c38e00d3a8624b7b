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

from cxr_node.analyse.answer import clear
from cxr_node.analyse.enhance import LungCrop, classifier_input
from cxr_node.analyse.gate import check_frontal, frontal_score
from cxr_node.analyse.letters import read_marker
from cxr_node.analyse.networks import Networks
from cxr_node.analyse.segment import check_lungs, clean_mask, right_and_left, zone_rows
from cxr_node.analyse.side import classify_sides
from cxr_node.errors import Rejected
from cxr_node.records import SIDES, ZONES, Findings, LetterCandidates

_EDGE_PX = 3.0
"""Smoothing of the heat map's edges, as a standard deviation: the decoder is not accurate to the pixel."""

_SURELY_FRONTAL = 2.0
"""Margin above the gate's threshold for an image with inverted greys, so that the second attempt lets no more pass."""
_HARDLY_FRONTAL = 4.0
"""An image that passes the gate by less than this is tried with inverted greys too: a few radiographs pass it as a negative."""
_SURELY_NEGATIVE = 4.0
"""By so much the gate's score of the negative exceeds that of an image that passes it, where the image's own greys are wrong. Of
radiographs, right and negative, the two scores differ by 6 and more (`training/RESULTS.md`)."""

_LOOKS_NEGATIVE = (
    "The greys look inverted (lungs bright, bones dark): check the header's PhotometricInterpretation, PresentationLUTShape, "
    "window and LUTs."
)


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
    masks, scores, refusals = _admit(images, networks)
    inverted = _turn_negatives(images, masks, scores, refusals, networks)
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


def _turn_negatives(
    images: list[NDArray[np.uint8]],
    masks: list[NDArray[np.bool_]],
    scores: list[float],
    refusals: dict[int, Rejected],
    networks: Networks,
) -> set[int]:
    """Invert the images whose greys are surely inverted, and reject those whose greys may be; all arguments change in place.

    A wrong PhotometricInterpretation makes lungs white, in viewers too.

    Returns:
        the indices of the images that are inverted now.
    """
    if networks.gate is None:
        return set()
    threshold = networks.gate["threshold"]
    doubtful = [index for index, score in enumerate(scores) if index in refusals or score < threshold + _HARDLY_FRONTAL]
    negatives = [np.asarray(255 - images[index], np.uint8) for index in doubtful]
    inverted: set[int] = set()
    if not doubtful:
        return inverted
    their_masks, their_scores, their_refusals = _admit(negatives, networks)
    for place, index in enumerate(doubtful):
        own, score = refusals.get(index), their_scores[place]
        if place in their_refusals or score <= scores[index]:
            continue
        lead = 0.0 if own is not None else _SURELY_NEGATIVE
        if score >= threshold + _SURELY_FRONTAL and score >= scores[index] + lead:
            images[index], masks[index] = negatives[place], their_masks[place]
            inverted.add(index)
            refusals.pop(index, None)
        else:
            refusals[index] = Rejected(_LOOKS_NEGATIVE, *(own.reasons if own is not None else ()))
    return inverted


def _admit(
    images: Sequence[NDArray[np.uint8]], networks: Networks
) -> tuple[list[NDArray[np.bool_]], list[float], dict[int, Rejected]]:
    """Lungs of each image, bool (224, 224), its score at the gate (0 without one), and why some are rejected, by index."""
    masks, bottlenecks = segment_batch(images, networks)
    gate = networks.gate
    scores = [0.0 if gate is None else frontal_score(*found, gate) for found in zip(bottlenecks, masks, strict=True)]
    refusals: dict[int, Rejected] = {}
    for index, mask in enumerate(masks):
        try:
            check_lungs(mask)
            if gate is not None:
                check_frontal(scores[index], gate)
        except Rejected as rejected:
            refusals[index] = rejected
    return masks, scores, refusals


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
            _findings(mask, crop, examined.probabilities[row], examined.heat[row], networks, seconds),
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
    heat: NDArray[np.float32],
    networks: Networks,
    seconds: dict[str, float],
) -> Findings:
    shown = clear(heat)
    inside = shown * crop.mask
    total = float(shown.sum())
    heatmap = heatmap_of(heat, crop, lungs)
    sides = dict(zip(SIDES, right_and_left(lungs), strict=True))
    borders = {side: zone_rows(lung) for side, lung in sides.items()}
    by_zone = _heat_by_zone(clear(heatmap), sides, borders)
    label = networks.model.classes[int(probabilities.argmax())]
    return Findings(
        label=label,
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
        indeterminate_below=networks.indeterminate_below.get(label, 0.0),
        seconds=dict(seconds),
    )


def heatmap_of(heat: NDArray[np.float32], crop: LungCrop, lungs: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The heat map that results show, float32 (224, 224) in 0..1: a crop's heat, (S, S), within lungs, bool (224, 224)."""
    inside = np.where(lungs, crop.to_prepared(heat * crop.mask, lungs.shape), np.float32(0))
    return np.clip(cv2.GaussianBlur(inside, (0, 0), _EDGE_PX), 0, 1).astype(np.float32) * lungs


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
