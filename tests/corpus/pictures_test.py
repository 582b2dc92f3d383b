from __future__ import annotations

import json
import pathlib
import re

import numpy as np
import pytest

from vla_jax.corpus import concepts
from vla_jax.corpus.concepts import LANGUAGES, clean_name, load_concepts, package_file
from vla_jax.corpus.pictures import (
    ART_STYLES,
    COLORS,
    MAT_COLORS,
    NUMBER_STYLES,
    PictureBank,
    emoji_file,
)


@pytest.fixture(scope="module")
def bank() -> PictureBank:
    return PictureBank()


def test_splits_are_disjoint_and_large_enough(bank: PictureBank):
    sizes = {s: len(bank.concepts(s)) for s in ("robot", "web_only", "nowhere", "background")}
    assert 45 <= sizes["robot"] <= 60
    assert 60 <= sizes["web_only"] <= 90
    assert 20 <= sizes["nowhere"] <= 25
    assert sizes["background"] > 1700
    keys = [k for s in sizes for k in bank.concepts(s)]
    assert len(keys) == len(set(keys))
    emoji = [c.emoji for c in load_concepts().values() if c.emoji]
    assert len(emoji) == len(set(emoji))


def test_curated_rows_are_well_formed():
    table = json.loads((pathlib.Path(concepts.__file__).parent / "concepts.json").read_text())
    known = {*COLORS, "gray"}
    for split in ("robot", "web_only", "nowhere"):
        for key, row in table[split].items():
            assert key == clean_name(key), key
            assert set(row) <= {"picture", "words", "category", "color", "also"}, key
            assert row.get("color", "red") in known, key
    assert sorted(n for row in table["numbers"].values() for n in row) == list(range(10))
    assert not set(table["blocks"]["robot"]) & set(table["blocks"]["web_only"])


def test_every_concept_has_a_name_in_all_languages(bank: PictureBank):
    assert len(LANGUAGES) == 14
    for key, concept in load_concepts().items():
        for language in LANGUAGES:
            name = bank.name(key, language)
            assert name.strip() and "_" not in name and ":" not in name.strip(":"), (key, language)
        assert concept.names["en"] == key


@pytest.mark.parametrize(
    ("key", "language", "name"),
    [
        ("dog", "en", "dog"),
        ("dog", "de", "hund"),
        ("dog", "ja", "イヌ"),
        ("car", "fr", "voiture"),
        ("red block", "es", "bloque rojo"),
        ("number 7", "zh", "数字7"),
    ],
)
def test_known_names(bank: PictureBank, key: str, language: str, name: str):
    assert bank.name(key, language) == name


def test_nowhere_names_occur_in_no_other_name():
    """In every language with spaces, as whole words; in the others, as the whole name."""
    everything = load_concepts().values()
    nowhere = [c for c in everything if c.split == "nowhere"]
    for concept in everything:
        if concept.split == "nowhere":
            continue
        for control in nowhere:
            for language in LANGUAGES:
                words = re.findall(r"\w+", concept.names[language])
                control_words = re.findall(r"\w+", control.names[language])
                n = len(control_words)
                runs = [words[i : i + n] for i in range(len(words) - n + 1)]
                assert control_words not in runs, (concept.key, control.key, language)


def test_pictures_have_shape_content_and_transparency(bank: PictureBank):
    for key in (*bank.concepts("robot"), *bank.concepts("web_only"), *bank.concepts("nowhere")):
        picture = bank.picture(key, 18)
        assert picture.shape == (18, 18, 4) and picture.dtype == np.uint8
        opaque = picture[..., 3] > 128
        assert opaque.mean() > 0.07, key
        if bank.category(key) == "block":
            assert (picture == (*COLORS[bank.color(key)], 255)).all()
        else:
            assert bank.picture(key, 72)[..., :3][bank.picture(key, 72)[..., 3] > 128].std() > 0


def test_curated_pictures_differ_at_table_size(bank: PictureBank):
    """Mean absolute difference on white at 17 px: no two robot or web-only concepts look alike."""
    keys = (*bank.concepts("robot"), *bank.concepts("web_only"))
    flat = []
    for key in keys:
        picture = bank.picture(key, 17).astype(np.float32)
        alpha = picture[..., 3:] / 255
        flat.append((picture[..., :3] * alpha + 255 * (1 - alpha)).ravel())
    flat = np.stack(flat)
    for i in range(len(keys) - 1):
        distance = np.abs(flat[i + 1 :] - flat[i]).mean(1)
        assert distance.min() > 6.0, (keys[i], keys[i + 1 + int(distance.argmin())])


def test_scaling_does_not_bleed_hidden_colour(bank: PictureBank):
    """A scaled-down premultiplied picture keeps the total colour of the original."""
    large, small = (bank.picture("apple", s).astype(np.float64) for s in (72, 24))
    for channel in range(3):
        total = [(p[..., channel] * p[..., 3]).sum() / p[..., 3].sum() for p in (large, small)]
        assert abs(total[0] - total[1]) < 3.0


def test_number_styles_differ_and_extent_holds_the_picture(bank: PictureBank):
    styles = [bank.picture("number 4", 40, s) for s in range(NUMBER_STYLES)]
    for i in range(NUMBER_STYLES):
        for j in range(i):
            assert np.abs(styles[i].astype(int) - styles[j]).mean() > 3
    np.testing.assert_array_equal(bank.picture("number 4", 40, NUMBER_STYLES), styles[0])
    assert bank.value("number 4") == 4 and bank.value("dog") is None
    y0, x0, y1, x1 = bank.extent("car")
    alpha = bank.picture("car", 144)[..., 3] > 128
    rows, columns = np.nonzero(alpha.any(1))[0], np.nonzero(alpha.any(0))[0]
    expected = np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]) / 144
    np.testing.assert_allclose((y0, x0, y1, x1), expected, atol=0.02)


def test_art_styles_differ_in_colour_alone(bank: PictureBank):
    for key in ("lion", "check mark", "firefighter"):
        styles = [bank.picture(key, 40, s) for s in range(len(ART_STYLES))]
        np.testing.assert_array_equal(styles[0], bank.picture(key, 40))
        np.testing.assert_array_equal(styles[0], bank.picture(key, 40, len(ART_STYLES)))
        inside = styles[0][..., 3] > 250
        for i, one in enumerate(styles):
            np.testing.assert_array_equal(one[..., 3], styles[0][..., 3])
            for other in styles[:i]:
                assert np.abs(one[inside].astype(int) - other[inside]).mean() > 10, (key, i)
        grey, outline = styles[1][inside][:, :3], styles[2][inside][:, :3]
        assert np.ptp(grey, axis=1).max() <= 2
        # Ink, paper and what scaling makes of the two.
        assert np.mean((outline.max(1) < 90) | (outline.min(1) > 200)) > 0.6
    red = [bank.picture("red block", 8, s) for s in range(5)]
    assert all((picture == red[0]).all() for picture in red)


def test_categories_and_colours(bank: PictureBank):
    assert bank.category("apple") == "fruit" and bank.color("apple") == "red"
    assert bank.category("red block") == "block" and bank.category("number 3") == "number"
    assert bank.category("guide dog") == "animal"
    assert set(MAT_COLORS) <= set(COLORS)


def test_bad_input_is_named(bank: PictureBank):
    with pytest.raises(ValueError, match=r"no concept 'red dog'.*'dog'"):
        bank.picture("red dog", 20)
    with pytest.raises(ValueError, match="'klingon'"):
        bank.name("dog", "klingon")
    with pytest.raises(ValueError, match="'tabletop'"):
        bank.concepts("tabletop")
    with pytest.raises(ValueError, match="at least 1 pixel"):
        bank.picture("dog", 0)
    with pytest.raises(FileNotFoundError, match="no picture of"):
        emoji_file("x")
    with pytest.raises(FileNotFoundError, match="pip install no-such-pictures"):
        package_file("no_such_pictures", "a.png")
    with pytest.raises(FileNotFoundError, match=r"requirements\.txt"):
        package_file("emoji", "no_such_file.json")
