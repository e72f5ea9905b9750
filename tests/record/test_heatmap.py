"""The heatmap's pixels: what each cell's colour says."""

import io

import numpy as np
import pytest
from PIL import Image

from lightning_gradwatch.record.heatmap import heatmap_png

ZERO, NON_FINITE, ABSENT = (213, 94, 0), (190, 60, 190), (232, 232, 232)
LOWEST, HIGHEST = (0, 34, 78), (254, 232, 56)
WIDTH = 760


def draw(values, names=None, steps=None, title="t"):
    values = np.asarray(values, dtype=np.float64)
    names = [f"n{i}" for i in range(values.shape[1])] if names is None else names
    steps = np.arange(len(values)) if steps is None else steps
    return Image.open(io.BytesIO(heatmap_png(steps, values, names, title))).convert("RGB")


def cells(image, columns, rows):
    """Return the colour in the middle of each cell, one list a row."""
    pixels = np.asarray(image)
    left, top = image.width - 140 - WIDTH, 40
    height = image.height - top - 46
    return [
        [
            tuple(pixels[top + int((row + 0.5) * height / rows), left + int((column + 0.5) * WIDTH / columns)].tolist())
            for column in range(columns)
        ]
        for row in range(rows)
    ]


def test_rows_are_layers_and_columns_are_steps_on_a_log_scale():
    grid = cells(draw([[1e-4, 1.0], [1e-2, 1e-4]]), 2, 2)
    assert grid[0][0] == LOWEST
    assert grid[1] == [HIGHEST, LOWEST]
    assert sum(LOWEST) < sum(grid[0][1]) < sum(HIGHEST)


def test_zero_not_finite_and_not_measured_have_their_own_colours():
    assert cells(draw([[0.0, np.inf, np.nan, 1.0]]), 1, 4)[:3] == [[ZERO], [NON_FINITE], [ABSENT]]


def test_the_legend_names_only_what_is_there():
    def drawn(values, colour):
        image = draw(values)
        return (np.asarray(image)[:, image.width - 130 :] == colour).all(axis=-1).any()

    assert drawn([[1.0, 0.0]], ZERO)
    assert not drawn([[1.0, 0.1]], ZERO)
    assert drawn([[1.0, np.nan]], ABSENT)


def test_the_colours_get_lighter_from_small_to_large():
    row = np.logspace(-7, 0, 64)[:, None]
    light = [0.3 * red + 0.59 * green + 0.11 * blue for red, green, blue in cells(draw(row), 64, 1)[0]]
    assert (np.diff(light) > 0).all()


def test_one_outlier_does_not_take_the_contrast():
    values = np.logspace(-2, 0, 200)[:, None].copy()
    values[50] = 1e-40
    row = cells(draw(values), 200, 1)[0]
    assert row[50] == row[0] == LOWEST


@pytest.mark.parametrize(("shape", "place"), [((3000, 2), (1501, 1)), ((2, 5000), (1, 2501))])
@pytest.mark.parametrize(("value", "colour"), [(0.0, ZERO), (np.inf, NON_FINITE)])
def test_a_zero_or_infinity_stays_visible_where_a_pixel_stands_for_several(shape, place, value, colour):
    values = np.ones(shape)
    values[place] = value
    assert (np.asarray(draw(values))[40:, : -140 - 1] == colour).all(axis=-1).any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 160), (300, 160), (3000, 3), (1, 5000)])
@pytest.mark.parametrize("value", [1.0, 0.0, np.nan, 5e-324, 1e308])
def test_any_size_and_range_is_drawn(shape, value):
    image = draw(np.full(shape, value))
    assert image.width < 1300
    assert image.height < 2200


def test_names_from_strangers_are_shown_or_replaced():
    names = ["a\ud800\n", "x" * 1_000_000, "日本", ""]
    image = draw(np.ones((2, 4)), names, title="\x00" + "t" * 9999)
    assert image.width < 1300


def test_what_all_names_start_with_is_written_once():
    short, long = ["0", "1", "2"], [f"module.encoder.layers.{i}" for i in range(3)]
    assert draw(np.ones((1, 3)), long).width < draw(np.ones((1, 3)), [f"x{name}y.{name}" for name in long]).width
    assert draw(np.ones((1, 3)), short).width <= draw(np.ones((1, 3)), long).width


@pytest.mark.parametrize(("shape", "names"), [((2, 3), ["a"]), ((0, 1), ["a"]), ((1, 0), [])])
def test_what_cannot_be_drawn_is_refused(shape, names):
    with pytest.raises(ValueError, match="values of shape"):
        draw(np.ones(shape), names)
