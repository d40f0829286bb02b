"""Named colours: found where they are, not found where they are not, on rendered scenes whose colours are known."""

import math

import numpy as np
import pytest

from jointdit.evaluation.scenes import evaluate_prompts, held_out_scenes
from jointdit.scenes import COLOURS
from jointdit.scenes.colours import (
    NAMES,
    UNNAMED,
    NamedColour,
    check_colours,
    colours_kept,
    is_found,
    named_colours,
    segment_colours,
)


@pytest.fixture(scope="module")
def scenes():
    return held_out_scenes(60)


@pytest.mark.slow
def test_segmentation_finds_what_scenes_show_and_nothing_else(scenes, capsys):
    told, swapped = evaluate_prompts([scene.rgb for scene in scenes], [scene.caption for scene in scenes])
    with capsys.disabled():
        print(f"\n{len(scenes)} rendered scenes: recall {told.found:.3f}, false alarms {told.false_alarm:.3f}")
    assert told.found >= 0.98
    assert told.false_alarm <= 0.01
    assert swapped.found < 0.4, "another scene's prompt must not score well"


def test_segmentation_stands_noise_and_blur(scenes):
    rng = np.random.default_rng(0)
    blurred = [(s.rgb.astype(float) + np.roll(s.rgb, 1, 0) + np.roll(s.rgb, 1, 1)) / 3 for s in scenes]
    noisy = [np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8) for image in blurred]
    report = check_colours(noisy, [scene.caption for scene in scenes])
    assert report.found >= 0.95
    assert report.false_alarm <= 0.02


def test_a_caption_names_the_colours_of_its_scene(scenes):
    for scene in scenes:
        expected = {("floor", scene.floor_colour), ("wall", scene.wall_colour)}
        assert set(named_colours(scene.caption)) == expected | {("object", thing.colour) for thing in scene.objects}


@pytest.mark.parametrize("shade", [1.0, 0.7, 0.5])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "white"])
def test_shading_does_not_change_the_name(name, shade):
    image = np.full((4, 4, 3), np.array(COLOURS[name]) * shade).astype(np.uint8)
    assert np.unique(segment_colours(image)).tolist() == [NAMES.index(name)]


def test_what_has_no_name_stays_unnamed():
    assert np.unique(segment_colours(np.zeros((4, 4, 3), np.uint8))).tolist() == [UNNAMED]
    magenta = np.full((4, 4, 3), (230, 30, 140), np.uint8)
    assert np.unique(segment_colours(magenta)).tolist() == [UNNAMED]


def test_place_and_size_decide_what_counts():
    labels = np.full((64, 64), NAMES.index("gray"), np.uint8)
    labels[:32] = NAMES.index("blue")
    labels[40, :] = NAMES.index("red")  # a line is no object
    assert is_found(labels, NamedColour("wall", "blue"))
    assert not is_found(labels, NamedColour("floor", "blue"))
    assert not is_found(labels, NamedColour("object", "red"))
    labels[40:48, 20:28] = NAMES.index("red")
    assert is_found(labels, NamedColour("object", "red"))


def test_confetti_does_not_score(scenes):
    rng = np.random.default_rng(1)
    palette = np.array(list(COLOURS.values()), np.uint8)
    confetti = [np.kron(palette[rng.integers(9, size=(16, 16))], np.ones((8, 8, 1), np.uint8)) for _ in scenes]
    report = check_colours(confetti, [scene.caption for scene in scenes])
    assert report.found < 0.5
    assert report.false_alarm > 0.9, "each colour is there, and not because it was named"


def test_a_lost_colour_shows_by_name():
    before = np.zeros((1, 16, 16, 3), np.uint8)
    before[:, :8], before[:, 8:] = COLOURS["purple"], COLOURS["green"]
    after = before.copy()
    after[:, :8] = COLOURS["blue"]
    kept = colours_kept(before, after)
    assert kept["purple"] == 0.0
    assert kept["green"] == 1.0
    assert math.isnan(kept["red"])
