"""The film's own R and L: what is found, what is read, what is left unread, and what is believed of it."""

from __future__ import annotations

import functools

import cv2
import numpy as np
import pytest
import torch

from cxr_node.analyse.letters import MIRRORED, choose, letter_probabilities, read_marker
from cxr_node.demo.samples import load_samples
from cxr_node.nets.constants import LETTER_CLASSES, LETTER_SIZE_PX
from cxr_node.nets.letters import shipped_letter_net
from cxr_node.prepare.image_file import read_image_file
from cxr_node.prepare.letters import LOOKED_AT_PX, PATCH_PX, find_letters
from cxr_node.records import Marker
from tests.images import chest_phantom

NO_LUNGS = np.zeros((224, 224), np.bool_)
THRESHOLDS = dict.fromkeys(LETTER_CLASSES[1:], 0.9)
SAMPLES = {sample.path.stem: sample.path for sample in load_samples()}


def letter_on(picture: np.ndarray, text: str, left: float, top: float, height_px: int) -> np.ndarray:
    """The picture, float32 (H, W) in 0..1, with text written at shares of its width and height."""
    written = np.zeros(picture.shape, np.uint8)
    place = (int(left * picture.shape[1]), int(top * picture.shape[0]) + height_px)
    cv2.putText(written, text, place, cv2.FONT_HERSHEY_DUPLEX, height_px / 22, 255, max(2, height_px // 8), cv2.LINE_AA)
    return np.maximum(picture, written.astype(np.float32) / 255)


@functools.cache
def plain_phantom(seed: int = 0) -> np.ndarray:
    """A phantom, float32 in 0..1, without its label and letter."""
    picture = chest_phantom(seed).astype(np.float32) / 4095
    picture[:130, -160:] = picture[131, -161]
    return picture[: int(picture.shape[0] * 0.9)]


def sample(name: str) -> np.ndarray:
    return read_image_file(SAMPLES[name]).astype(np.float32) / 255


def read(picture: np.ndarray) -> Marker | None:
    return read_marker(find_letters(np.ascontiguousarray(picture)), NO_LUNGS)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("letter", "left", "marker"),
    [
        ("R", 0.06, Marker("R", at_left=True)),
        ("L", 0.88, Marker("L", at_left=False)),
        ("R", 0.88, Marker("R", at_left=False)),
        ("L", 0.06, Marker("L", at_left=True)),
    ],
)
def test_reads_a_letter_and_the_side_it_stands_on(letter, left, marker, seed):
    assert read(letter_on(plain_phantom(seed), letter, left, 0.04, 60)) == marker


def test_a_marker_says_where_the_right_is():
    assert Marker("R", at_left=True).right_at_left
    assert Marker("L", at_left=False).right_at_left
    assert not Marker("R", at_left=False).right_at_left
    assert not Marker("L", at_left=True).right_at_left


@pytest.mark.parametrize("height_px", [30, 40, 80])
def test_reads_letters_of_many_sizes(height_px):
    assert read(letter_on(plain_phantom(), "L", 0.85, 0.03, height_px)) == Marker("L", at_left=False)


def test_reads_a_real_radiographs_own_letter_and_nothing_where_another_contradicts_it():
    picture = sample("covid19-adult")
    assert read(picture) == Marker("R", at_left=True)
    assert read(letter_on(picture, "R", 0.85, 0.03, 35)) is None


def test_a_mirrored_picture_has_its_letter_mirrored_on_the_other_side():
    picture = letter_on(plain_phantom(), "R", 0.06, 0.04, 60)
    assert read(picture[:, ::-1]) == Marker("R", at_left=False, mirrored=True)


@pytest.mark.parametrize("seed", range(4))
def test_reads_nothing_where_there_is_no_letter(seed):
    assert read(plain_phantom(seed)) is None
    assert read(plain_phantom(seed)[:, ::-1]) is None


@pytest.mark.parametrize("text", ["PORTABLE", "RIGHT", "LEFT", "ERECT", "CLR", "D", "B", "P", "K", "I", "E", "AP", "G", "7", "J"])
@pytest.mark.parametrize("left", [0.05, 0.7])
def test_reads_no_other_letter_and_no_word(text, left):
    assert read(letter_on(plain_phantom(), text, left, 0.05, 45)) is None


def test_reads_nothing_off_a_picture_without_detail():
    assert read(np.zeros((300, 200), np.float32)) is None
    assert read(np.full((4000, 3000), np.nan, np.float32)) is None
    assert read(np.zeros((128, 60_000), np.float32)) is None
    assert read(np.random.default_rng(1).random((900, 1300), np.float32)) is None
    assert read_marker(None, NO_LUNGS) is None


def chances(name: str, value: float = 0.99) -> np.ndarray:
    row = np.full(len(LETTER_CLASSES), (1 - value) / 4, np.float32)
    row[LETTER_CLASSES.index(name)] = value
    return row


LEFT, MIDDLE, RIGHT = (np.array([x, 0.05, x + 0.04, 0.1], np.float32) for x in (0.1, 0.47, 0.85))


@pytest.mark.parametrize(
    ("letters", "marker"),
    [
        ([(LEFT, "R", 0.99)], Marker("R", at_left=True)),
        ([(LEFT, "R", 0.8)], None),
        ([(LEFT, "none", 0.99)], None),
        ([(MIDDLE, "R", 0.99)], None),
        ([(LEFT, "R", 0.95), (RIGHT, "L", 0.99)], Marker("L", at_left=False)),
        ([(LEFT, "R", 0.99), (RIGHT, "R", 0.95)], None),
        ([(LEFT, "R", 0.99), (RIGHT, "mirrored R", 0.95)], None),
        ([(LEFT, "R", 0.95), (RIGHT, "mirrored L", 0.99)], Marker("R", at_left=True)),
        ([(RIGHT, "mirrored L", 0.99)], Marker("L", at_left=False, mirrored=True)),
    ],
    ids=str,
)
def test_letters_count_if_they_are_sure_at_one_side_and_agree(letters, marker):
    boxes = np.stack([box for box, _, _ in letters])
    seen = np.stack([chances(name, value) for _, name, value in letters])
    assert choose(boxes, seen, NO_LUNGS, THRESHOLDS) == marker


def test_a_letter_in_the_lungs_does_not_count():
    lungs = NO_LUNGS.copy()
    lungs[:60, :60] = True
    assert choose(LEFT[None], chances("R")[None], NO_LUNGS, THRESHOLDS) is not None
    assert choose(LEFT[None], chances("R")[None], lungs, THRESHOLDS) is None


def test_a_class_whose_threshold_is_above_one_is_never_read():
    assert choose(LEFT[None], chances("R", 1.0)[None], NO_LUNGS, THRESHOLDS | {"R": 2.0}) is None


def test_what_is_read_in_the_mirror_is_the_mirrored_letter():
    found = find_letters(letter_on(plain_phantom(), "R", 0.06, 0.04, 60))
    network = shipped_letter_net()
    there = letter_probabilities(found.patches, network)
    mirrored = letter_probabilities(np.ascontiguousarray(found.patches[..., ::-1]), network)
    sure = there.max(axis=1) > 0.9
    assert sure.any()
    assert (there[sure].argmax(axis=1) == mirrored[sure][:, MIRRORED].argmax(axis=1)).all()


def test_candidates_lie_where_the_letter_is():
    found = find_letters(letter_on(np.zeros((1500, 1200), np.float32), "R", 0.5, 0.5, 60))
    assert found.patches.shape[1:] == (2, PATCH_PX, PATCH_PX)
    left, top, right, bottom = found.boxes[0]
    assert left == pytest.approx(0.5, abs=0.02)
    assert bottom == pytest.approx(0.5 + 60 / 1500, abs=0.02)
    assert (right - left) * 1200 < 80
    assert (bottom - top) * 1500 < 80
    assert LOOKED_AT_PX == 1024


def test_the_network_that_is_shipped_computes_what_was_trained():
    training = pytest.importorskip("training.fit.letters")
    torch.manual_seed(1)
    network = training.TrainedNet().train()
    patches = torch.randint(0, 256, (64, 2, LETTER_SIZE_PX, LETTER_SIZE_PX), dtype=torch.uint8)
    network(patches.float() / 255)  # so that the normalisation has something to fold
    folded, _ = training.folded(network, {})
    with torch.inference_mode():
        trained = network(patches.float() / 255).softmax(1).numpy()
    np.testing.assert_allclose(folded.probabilities(patches.numpy()), trained, atol=2e-3)


def test_thresholds_rise_until_hardly_any_radiograph_is_read_wrong():
    training = pytest.importorskip("training.fit.letters")
    right = [(LEFT[None], chances("R", 0.97)[None])] * 90
    wrong = [(RIGHT[None], chances("R", 0.96)[None])] * 10
    assert training.choose_thresholds(right)["R"] == 0.75
    assert training.choose_thresholds([*right, *wrong])["R"] == 0.98
    assert training.choose_thresholds([(RIGHT[None], chances("R", 0.9999)[None])])["R"] > 1


def test_the_shipped_reader_is_small_and_says_how_right_it_is():
    network = shipped_letter_net()
    assert sum(weights.size for weights, _ in (*network.convolutions, network.linear)) < 150_000
    figures = network.description["figures"]
    for split in ("val", "test"):
        assert figures[split]["all"]["wrong"] <= 0.002 * figures[split]["all"]["radiographs"]


R_AT_LEFT = (
    *("ieee8023-6728828bde36", "kermany-18bb0e2f65c4", "kermany-2b50b738048f", "kermany-2ffe5e3f952b"),
    *("kermany-31e9e18c124e", "kermany-36a3fbdc2f14", "kermany-3e4fdb743e09", "kermany-44aa79ead634"),
    *("kermany-494cff9007f5", "kermany-49ee213cd9f4", "kermany-54ce65431639", "kermany-5dff15784ca0"),
    *("kermany-64e9f6a3e4ca", "kermany-7fc258c0788f", "kermany-8e0e0c8e79b5", "kermany-ac891ee9b711"),
    *("kermany-b05df92d66da", "kermany-b81c3f75793f", "kermany-c194214a9485", "kermany-cc146682aecb"),
    *("kermany-d7c805910745", "kermany-d98521e9ad2b", "kermany-e0992192371b", "kermany-ee453763d046"),
    *("kermany-ee5d2312172d", "kermany-ef96abc172e4", "kermany-f2bc953df0ac", "kermany-ff53c668de22"),
)
L_AT_RIGHT = ("ieee8023-214afaeafbcc", "ieee8023-d6cb859e37cb")
"""What a person sees on the full-size radiographs of the folder `fullres`; the other ten have neither letter."""


@pytest.mark.data
def test_reads_most_letters_of_real_radiographs_and_none_where_there_is_none(data_folder):
    paths = sorted((data_folder / "fullres").glob("*.jpg"))
    if len(paths) < 40:
        pytest.skip("the full-size radiographs are not there")
    read_of = {path.stem: read(read_image_file(path).astype(np.float32) / 255) for path in paths}
    for name, marker in read_of.items():
        letter = "R" if name in R_AT_LEFT else "L" if name in L_AT_RIGHT else None
        assert marker in (None, letter and Marker(letter, at_left=letter == "R")), name
    assert sum(marker is not None for marker in read_of.values()) >= 0.8 * len(R_AT_LEFT + L_AT_RIGHT)


@pytest.mark.data
def test_letters_of_real_radiographs_that_are_mirrored_say_so(data_folder):
    paths = [data_folder / "fullres" / f"{name}.jpg" for name in R_AT_LEFT[::3]]
    if not all(path.exists() for path in paths):
        pytest.skip("the full-size radiographs are not there")
    markers = [read(read_image_file(path)[:, ::-1].astype(np.float32) / 255) for path in paths]
    assert all(marker in (None, Marker("R", at_left=False, mirrored=True)) for marker in markers)
    assert sum(marker is not None for marker in markers) >= 0.7 * len(markers)


def test_pictures_to_learn_from_hold_letters_and_what_is_none():
    pictures = pytest.importorskip("training.fit.letter_pictures")
    shapes = pytest.importorskip("training.fit.letter_shapes")
    radiographs = np.stack([cv2.resize((plain_phantom(seed) * 255).astype(np.uint8), (224, 224)) for seed in range(2)])
    rng, fonts = np.random.default_rng(3), shapes.load_fonts()
    drawn = [pictures.draw_tile(radiographs, fonts, rng) for _ in range(6)]
    classes = np.concatenate([one.classes for one in drawn])
    assert set(classes) >= set(range(len(LETTER_CLASSES)))
    patches = np.concatenate([one.patches for one in drawn])
    sure = letter_probabilities(patches, shipped_letter_net())
    of_letters = classes > 0
    assert (sure[of_letters].argmax(axis=1) == classes[of_letters]).mean() > 0.6
    assert (sure[classes == 0][:, 1:].max(axis=1) < 0.75).mean() > 0.97


def test_true_letters_at_borders_are_no_examples_of_none():
    training = pytest.importorskip("training.fit.letters")
    pictures = pytest.importorskip("training.fit.letter_pictures")
    patches = find_letters(letter_on(plain_phantom(), "R", 0.06, 0.04, 60)).patches[:1]
    at_border = np.array([pictures.AT_BORDER])
    for left, kept in ((True, 0), (False, 1)):
        samples = pictures.Samples(patches, at_border, np.array([left]))
        assert len(training.settled(samples, shipped_letter_net()).classes) == kept
