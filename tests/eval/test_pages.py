"""What the pages of evaluations are made of."""

import re

import numpy as np

from eval.pages import page
from eval.statistics import Estimate

FRAME = np.zeros((8, 8, 3), np.uint8)


def line(*values: float) -> list[tuple[int, Estimate]]:
    return [(x, Estimate(value, value, value)) for x, value in enumerate(values, 1)]


def test_names_of_lines_that_end_at_one_place_stand_apart_in_the_colours_of_their_lines():
    drawn = page.curve({"map": line(1, 1), "model": line(0.9, 1), "shift": line(1, 0.99)}, "x")
    names = re.findall(r'<text x="[\d.]+" y="([\d.]+)" dy="4" fill="(#\w+)">(\w+)</text>', drawn)
    heights = sorted(float(y) for y, _, _ in names)
    assert len(heights) == 3
    assert np.diff(heights).min() >= page.NAME_HEIGHT
    assert {name: colour for _, colour, name in names} == {
        name: page.COLOURS[name] for name in ("map", "model", "shift")
    }
    assert "fill" not in page.STYLE  # a style beats the attribute


def test_the_uppermost_number_of_an_axis_is_not_cut_off():
    drawn = page.curve({"model": line(1, 0.5)}, "x", scale=100)
    (height,) = re.findall(r'y="([\d.]+)" text-anchor="end" dy="4" fill="gray">100</text>', drawn)
    assert float(height) >= 19 / 2  # half of the greatest size of letters


def test_a_single_row_needs_no_name_and_no_column_for_it():
    picture = page.picture(FRAME)
    drawn = page.lanes({"": [picture, picture]}, ["start", "“explore”\nleft"])
    assert re.findall(r"<th[^>]*>([^<]*)</th>", drawn) == ["start", "“explore”\nleft"]
    both = page.lanes({"real": [picture], "model": [picture]}, ["start"])
    assert re.findall(r"<th[^>]*>([^<]*)</th>", both) == ["", "start", "real", "model"]


def test_floors_break_between_each_other_and_not_within():
    drawn = page.table([("frames", "**9 %**", "map 8 % [7, 9]; shift 7 % [6, 8]")])
    assert "<span>map 8 % [7, 9]</span> <span>shift 7 % [6, 8]</span>" in drawn
    assert "<td><b>9 %</b></td>" in drawn


def test_every_class_that_a_part_of_a_page_has_is_styled():
    parts = page.strip([page.figure(FRAME, "seen", small=True, tone="bad")], "label")
    parts += page.lanes({"a": [""]}, ["b"]) + page.table([("a", "b", "c")])
    parts += page.curve({"model": line(1, 2)}, "x")
    for names in re.findall(r'class="([^"]+)"', parts):
        for name in names.split():
            assert f".{name}" in page.STYLE
