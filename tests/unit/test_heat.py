"""From relevance to the heat that is drawn: as strong as it is, in the lungs alone, and none where nothing is kept."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from cxr_node.analyse.networks import Examined
from cxr_node.analyse.pipeline import classify_batch
from cxr_node.records import Findings, Model

LUNGS = np.zeros((224, 224), bool)
LUNGS[40:190, 30:100] = LUNGS[40:190, 124:194] = True


def findings(heat: np.ndarray) -> Findings:
    """Findings of lungs whose heat, float (224, 224), is given."""
    networks = SimpleNamespace(
        input_size_px=224,
        segmented=False,
        model=Model("CXRNet", "t", ""),
        indeterminate_below={},
        examine=lambda crops, lungs: Examined(
            np.tile([0.1, 0.2, 0.3, 0.4], (len(crops), 1)), heat[None].astype(np.float32), [""] * len(crops)
        ),
    )
    (found,) = classify_batch([np.full((224, 224), 128, np.uint8)], [LUNGS], networks)
    return found


@pytest.mark.parametrize("value", [0.1, 0.5, 1.0])
def test_the_heat_map_is_as_strong_as_the_heat(value):
    found = findings(np.full((224, 224), value))
    assert found.heatmap[115, 65] == pytest.approx(value, abs=1e-3)
    assert (found.heatmap[~LUNGS] == 0).all()
    assert found.heat_in_lungs == pytest.approx(LUNGS.mean(), abs=1e-3)


def test_faint_heat_says_nothing_of_a_side():
    heat = np.full((224, 224), 0.04)
    heat[:, :112] = 0.001
    found = findings(heat)
    assert found.heatmap.max() == pytest.approx(0.04, abs=1e-3)
    assert set(found.heat_by_lung.values()) == {0.0}
    assert found.heat_in_lungs == 1.0


def test_heat_in_one_lung_is_that_lung_s():
    heat = np.zeros((224, 224))
    heat[60:120, 40:90] = 1.0
    found = findings(heat)
    assert found.heat_by_lung["right"] == pytest.approx(1.0)  # the patient's right is on the image's left
    assert found.heat_in_lungs == pytest.approx(1.0)
    assert found.heatmap[90, 65] == pytest.approx(1.0, abs=0.01)
    assert found.heatmap[90, 160] == 0
