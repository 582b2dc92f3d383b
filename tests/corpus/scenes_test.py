from __future__ import annotations

import dataclasses
import math
import random

import numpy as np
import pytest
from PIL import Image, ImageDraw

from vla_jax.corpus import paint
from vla_jax.corpus.paint import Painter
from vla_jax.corpus.pictures import PictureBank
from vla_jax.corpus.scenes import Scene, compose, corners


@pytest.fixture(scope="module")
def bank() -> PictureBank:
    return PictureBank()


def _scenes(bank: PictureBank, count: int, size: int = 112, **options) -> list[Scene]:
    scenes = []
    keys = (*bank.concepts("robot"), *bank.concepts("web_only"))
    for i in range(count):
        rng = random.Random(i)
        scenes.append(compose(rng, rng.sample(keys, rng.randint(1, 5)), bank, size=size, **options))
    return scenes


def test_corners_of_a_turned_and_flattened_square():
    angle, flatten = 0.3, 0.7
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    unit = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * 5.0
    expected = (unit @ turn.T) * [1, flatten] + [30, 20]
    np.testing.assert_allclose(corners((20, 30), 10, angle, flatten), expected, atol=1e-9)


@pytest.mark.parametrize("size", [64, 112, 224])
def test_everything_is_inside_and_apart(bank: PictureBank, size: int):
    for scene in _scenes(bank, 150, size):
        for thing in (*scene.objects, *scene.mats):
            y0, x0, y1, x1 = thing.box
            assert -0.1 * size < y0 < y1 < 1.1 * size and -0.1 * size < x0 < x1 < 1.1 * size
            assert y0 < thing.center[0] < y1 and x0 < thing.center[1] < x1
            assert 0 <= thing.center[0] < size and 0 <= thing.center[1] < size
        for i, a in enumerate(scene.objects):
            for b in scene.objects[:i]:  # no centre inside another's box
                inside = b.box[0] < a.center[0] < b.box[2] and b.box[1] < a.center[1] < b.box[3]
                assert not inside
        for i, o in enumerate(scene.objects):
            under = [m for m in scene.mats if m.under == i]
            assert [m.color for m in under] == ([o.mat] if o.mat else [])
        colors = [m.color for m in scene.mats]
        assert len(colors) == len(set(colors))


def test_table_scenes_have_blocks_of_the_size_a_camera_sees(bank: PictureBank):
    sides = [
        o.side_px for s in _scenes(bank, 300, table=True) for o in s.objects if o.height_px > 0
    ]
    assert 12 < np.percentile(sides, 5) < np.median(sides) < 19 and np.percentile(sides, 95) < 27


@pytest.mark.parametrize("table", [True, False])
def test_the_smallest_pictures_are_of_the_size_that_was_asked_for(bank: PictureBank, table: bool):
    """Alone, so that there is room: from 15% under `least_px`, which is for 112 pixels."""
    for least, size in ((13.0, 112), (20.0, 112), (20.0, 224)):
        sides = [
            compose(
                random.Random(i), ["dog"], bank, size=size, least_px=least, table=table
            ).objects[0].side_px
            for i in range(400)
        ]  # fmt: skip
        bound = 0.85 * least * size / 112
        assert bound <= min(sides) < 1.15 * bound


def test_a_plain_block_is_never_flat(bank: PictureBank):
    for i in range(100):
        scene = compose(random.Random(i), ["red block"], bank, size=112)
        assert scene.objects[0].height_px > 0 and scene.objects[0].tile == "red"


def test_recorded_boxes_are_where_the_pixels_are(bank: PictureBank):
    painter = Painter(bank)
    checked = 0
    for scene in _scenes(bank, 120):
        for placed in scene.objects:
            canvas = Image.new("RGB", (112, 112))
            if placed.tile:
                points = corners(placed.anchor, placed.side_px, placed.angle, scene.view.flatten)
                ImageDraw.Draw(canvas).polygon(points, fill=(255, 255, 255))
            else:
                placed_alone = Image.new("RGB", (112, 112), (255, 0, 255))
                painter._paste_picture(placed_alone, placed, scene.view.flatten)
                difference = np.abs(np.asarray(placed_alone).astype(int) - (255, 0, 255)).max(-1)
                canvas = Image.fromarray(np.uint8(255 * (difference > 70)))
            ys, xs = np.nonzero(np.asarray(canvas.convert("L")))
            y0, x0, y1, x1 = np.clip(placed.box, 0, 112)  # a turned corner may be outside
            # A turned extent's box is larger than what is in it: only an upper bound then.
            slack = 2.0 + (0 if placed.tile else placed.side_px * abs(math.sin(placed.angle)))
            for found, expected, sign in (
                (ys.min(), y0, 1), (xs.min(), x0, 1), (ys.max() + 1, y1, -1), (xs.max() + 1, x1, -1)
            ):  # fmt: skip
                assert -2.0 < sign * (found - expected) < slack
            checked += 1
    assert checked > 200


def test_paint_is_a_function_of_scene_and_rng(bank: PictureBank):
    painter = Painter(bank)
    scene = _scenes(bank, 1)[0]
    first, second, other = (painter.paint(scene, random.Random(s)) for s in (1, 1, 2))
    assert first.shape == (112, 112, 3) and first.dtype == np.uint8
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()


def test_a_gripper_is_over_its_dot(bank: PictureBank, monkeypatch: pytest.MonkeyPatch):
    """A dot is painted where the scene says, and everything else above it."""
    monkeypatch.setattr(paint, "_finish", lambda canvas, _: np.asarray(canvas))
    painter = Painter(bank)
    for i in range(60):
        rng = random.Random(i)
        scene = compose(rng, ["dog", "red block"], bank, size=112, table=True, gripper=True)
        bare = dataclasses.replace(scene, gripper=None)
        assert [m.under for m in scene.mats if m.under is not None] == [
            i for m in scene.mats for i, o in enumerate(scene.objects) if o.mat == m.color
        ]
        assert scene.gripper is not None
        with_it, without = (painter.paint(s, random.Random(1)) for s in (scene, bare))
        changed = (with_it != without).any(-1)
        y, x = scene.gripper.dot
        held = [o.anchor for o in scene.objects if o.key == scene.gripper.holds]
        assert held in ([], [(y - scene.gripper.lift_px, x)])
        if not held:  # else the light falls on the block
            assert changed[int(y), int(x)]
            assert y <= np.nonzero(changed)[0].max() + 1 <= y + 13
    assert all(s.gripper is None for s in _scenes(bank, 60) if not s.view.table)


def test_noise_stays_in_range(monkeypatch: pytest.MonkeyPatch):
    """Adding noise to white and black must not wrap around."""

    class Always(random.Random):
        def random(self) -> float:
            return 0.2  # tone and noise, no blur

    for grey in (0, 255):
        monkeypatch.setattr(paint, "_tone", lambda *_: bytes(range(256)))
        pixels = paint._finish(Image.new("RGB", (64, 64), (grey,) * 3), Always(3))
        assert np.abs(pixels.astype(int) - grey).max() < 60
        assert (pixels != grey).any()


def test_too_many_pictures_are_refused(bank: PictureBank):
    with pytest.raises(ValueError, match="do not fit"):
        compose(random.Random(0), ["dog"] * 400, bank, size=40)
