import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchscaler.errors import InputError
from patchscaler.imaging.size import TargetSize, parse_box

SIDES = st.integers(8, 3000)


def test_nothing_said_is_four_times():
    assert TargetSize().of(100, 51) == (400, 204)


@given(SIDES, SIDES, st.floats(1, 8))
def test_a_scale_gives_the_nearest_size(width, height, scale):
    for side, scaled in zip((width, height), TargetSize(scale=scale).of(width, height), strict=True):
        assert abs(scaled - side * scale) <= 0.5


@given(SIDES, SIDES, st.floats(1, 8))
def test_one_side_gives_the_other_in_the_same_aspect(width, height, scale):
    wanted = round(width * scale)
    wide, high = TargetSize(width=wanted).of(width, height)
    assert wide == wanted
    assert abs(high - height * wanted / width) <= 0.5
    wanted = round(height * scale)
    wide, high = TargetSize(height=wanted).of(width, height)
    assert high == wanted
    assert abs(wide - width * wanted / height) <= 0.5


def test_both_sides_are_taken_as_they_are():
    assert TargetSize(width=150, height=333).of(100, 100) == (150, 333)


@given(SIDES, SIDES, st.floats(1, 8), st.floats(1, 8))
def test_a_box_is_touched_and_not_crossed(width, height, across, down):
    box = (round(width * across), round(height * down))
    wide, high = TargetSize(fit=box).of(width, height)
    assert wide <= box[0]
    assert high <= box[1]
    assert wide == box[0] or high == box[1]
    assert abs(wide * height - high * width) <= max(width, height) / 2


@pytest.mark.parametrize("scale", [0.99, 8.01, 0, -4, float("nan"), float("inf")])
def test_scales_out_of_range_are_refused(scale):
    with pytest.raises(InputError, match="1 to 8"):
        TargetSize(scale=scale)


@pytest.mark.parametrize(
    "wish", [{"width": 99}, {"height": 801}, {"width": 200, "height": 900}, {"fit": (90, 900)}]
)
def test_sizes_out_of_range_are_refused(wish):
    with pytest.raises(InputError, match="1 to 8"):
        TargetSize(**wish).of(100, 100)


@pytest.mark.parametrize(
    "wish", [{"scale": 2.0, "width": 9}, {"fit": (9, 9), "height": 9}, {"width": 0}, {"fit": (0, 9)}]
)
def test_wishes_that_disagree_are_refused(wish):
    with pytest.raises(InputError):
        TargetSize(**wish)


def test_boxes_are_written_as_two_numbers():
    assert parse_box("3840x2160") == parse_box("3840X2160") == (3840, 2160)
    for text in ("3840", "x", "3840x", "-1x5", "1.5x2", "axb"):
        with pytest.raises(InputError, match="WIDTHxHEIGHT"):
            parse_box(text)
