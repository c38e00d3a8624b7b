"""The presentation state: lung outlines, zones and the result as layers that a reader switches on and off over the
original image.

The greys are those of the overlay (`compose.greys`). `identity` adds patient, study and equipment.
"""

from __future__ import annotations

import numpy as np
from highdicom.color import CIELabColor
from highdicom.pr import (
    AnnotationUnitsValues,
    GraphicAnnotation,
    GraphicLayer,
    GraphicObject,
    GrayscaleSoftcopyPresentationState,
    TextObject,
)
from highdicom.pr import GraphicTypeValues as PresentationGraphicTypeValues
from pydicom import Dataset

from cxr_node.compose.greys import add_greys, add_shutter
from cxr_node.compose.identity import ResultIdentity, bare_reference
from cxr_node.compose.notes import notes
from cxr_node.compose.source_pixels import SourceMaps, pixel_aspect
from cxr_node.compose.words import headline
from cxr_node.prepare.geometry import outlines_in_source, points_to_source
from cxr_node.prepare.header import first_of, text
from cxr_node.prepare.pixel_header import PALETTE
from cxr_node.records import NOT_FOR_DIAGNOSIS, SIDES, ZONES

_PIXEL, _DISPLAY = AnnotationUnitsValues.PIXEL, AnnotationUnitsValues.DISPLAY
_POLYLINE = PresentationGraphicTypeValues.POLYLINE


def has_presentation(source: Dataset) -> bool:
    """Whether there is a presentation state for a source: a grayscale one must not refer to a colour image (PS3.3 A.33.1.1)."""
    return first_of(source, "SamplesPerPixel") in (None, 1) and text(source, "PhotometricInterpretation") != PALETTE


def compose_presentation(source: Dataset, maps: SourceMaps, place: ResultIdentity) -> Dataset:
    """The presentation state as a data set, not yet identified.

    Args:
        source: the image's header.
        maps: where the findings lie in it.
        place: the object's own UIDs and numbers.
    """
    image = bare_reference(source)
    image.Rows, image.Columns, image.SamplesPerPixel = maps.geometry.rows, maps.geometry.columns, 1
    lungs = GraphicLayer("LUNGS", 1, "Outlines of the lungs", CIELabColor.from_rgb(150, 225, 235))
    zones = GraphicLayer("ZONES", 2, "Zones of the lungs with their share of the heat", CIELabColor.from_rgb(205, 205, 205))
    result = GraphicLayer("RESULT", 3, NOT_FOR_DIAGNOSIS, CIELabColor.from_rgb(255, 190, 70))
    ds = GrayscaleSoftcopyPresentationState(
        [image],
        **place.for_highdicom,
        content_label="AI RESULT",
        content_description=NOT_FOR_DIAGNOSIS,
        graphic_layers=[lungs, zones, result],
        graphic_annotations=[
            GraphicAnnotation([image], lungs, graphic_objects=_outlines(maps)),
            GraphicAnnotation([image], zones, graphic_objects=_borders(maps), text_objects=_shares(maps)),
            GraphicAnnotation([image], result, text_objects=[_result(maps)]),
        ],
    )
    ds.BodyPartExamined = "CHEST"
    area = ds.DisplayedAreaSelectionSequence[0]
    area.PresentationPixelAspectRatio = [max(1, round(1000 * pixel_aspect(source))), 1000]
    add_greys(ds, source, maps.greys, inverted=maps.findings.greys_inverted)
    add_shutter(ds, maps.greys)
    return ds


def _outlines(maps: SourceMaps) -> list[GraphicObject]:
    """Each part of the lungs; the whole image where there are none, since an annotation needs something to draw."""
    parts = [outline for side in SIDES for outline in outlines_in_source(maps.lung(side), maps.geometry)]
    if not parts:
        corners = np.array([(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)], np.float64)
        parts = [points_to_source(corners, maps.geometry)]
    return [GraphicObject(_POLYLINE, part, _PIXEL) for part in parts]


def _borders(maps: SourceMaps) -> list[GraphicObject]:
    """Lines across each lung where its middle and its lower zone begin."""
    lines = []
    for side in SIDES:
        lung = maps.lung(side)
        height, width = lung.shape
        for row in maps.findings.zone_rows[side]:
            across = np.flatnonzero(lung[min(row, height - 1)])
            if across.size:
                ends = np.array([(across[0] / width, row / height), ((across[-1] + 1) / width, row / height)])
                lines.append(GraphicObject(_POLYLINE, points_to_source(ends, maps.geometry), _PIXEL))
    return lines


def _shares(maps: SourceMaps) -> list[TextObject]:
    """The share of the heat in each zone, in its middle."""
    texts = []
    for side in SIDES:
        lung = maps.lung(side)
        height, width = lung.shape
        borders = (0, *maps.findings.zone_rows[side], height)
        for number, zone in enumerate(ZONES):
            rows, columns = np.nonzero(lung[borders[number] : borders[number + 1]])
            if rows.size:
                middle = np.array([(columns.mean() / width, (borders[number] + rows.mean()) / height)])
                share = maps.findings.heat_by_zone[side, zone]
                (anchor,) = points_to_source(middle, maps.geometry)
                texts.append(TextObject(f"{share:.0%}", _PIXEL, anchor_point=(float(anchor[0]), float(anchor[1]))))
    return texts


def _result(maps: SourceMaps) -> TextObject:
    """Class and probability in the upper left of the screen, whatever part of the image it shows."""
    text = "\r\n".join((headline(maps.findings), NOT_FOR_DIAGNOSIS, *notes(maps.findings)))
    return TextObject(text, _DISPLAY, bounding_box=(0.02, 0.02, 0.6, 0.1))
