import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchscaler.evaluation import metrics
from patchscaler.evaluation.contest import SIZE, Contest, Crop, Views, places

EQUAL = Crop("image", 0, 0, 192, 30.0, (1.0, 1.0), (25.0, 25.0))


def crop(stem: str, gain: float, **changes) -> Crop:
    return dataclasses.replace(EQUAL, stem=stem, dfd=(1.0, 1.0 + gain), **changes)


@given(st.integers(33, 300), st.integers(33, 300), st.integers(0, 8))
def test_crops_cover_the_image_inside_the_border_on_the_lr_grid(rows, columns, border):
    height, width = 4 * rows, 4 * columns
    seen = np.zeros((height, width), bool)
    for top, left, size in places(height, width, border, 4):
        assert top % 4 == left % 4 == size % 4 == 0 < size <= SIZE
        assert min(top, left) >= border
        assert top + size <= height - border and left + size <= width - border
        seen[top : top + size, left : left + size] = True
    margin = -(-border // 4) * 4
    assert seen[margin : height - margin, margin : width - margin].all()


def test_largest_differences_come_first_and_one_of_an_image():
    better = {"psnr_y": (26.0, 25.0)}
    crops = [crop("a", 0.1, **better), crop("a", 0.3, **better), crop("b", 0.2, **better), crop("b", -0.2),
             crop("c", -0.4), crop("c", -0.5)]  # fmt: skip
    contest = Contest("theirs", crops)
    assert contest.wins() == [crops[1], crops[2]]
    assert contest.losses() == [crops[5], crops[3]]
    assert contest.wins(1) == [crops[1]] and contest.losses(1) == [crops[5]]


def test_a_win_needs_both_measures_and_something_to_see_a_loss_only_one():
    assert crop("a", 0.1, psnr_y=(26.0, 25.0)).won
    assert not crop("a", 0.1, psnr_y=(25.0, 26.0)).won
    assert not crop("a", 0.1, psnr_y=(26.0, 25.0), contrast=5.0).won
    assert crop("a", -0.1, psnr_y=(26.0, 25.0), contrast=5.0).lost
    assert not EQUAL.won and not EQUAL.lost


@pytest.fixture(scope="module")
def judge():
    return metrics.DeepFeatureDistance()


def test_figures_and_pictures_are_those_of_the_crop(judge, make_scene):
    truth = make_scene(256, 320)
    ours, peer = truth.copy(), truth.copy()
    ours[64:, :192] = 255 - ours[64:, :192]  # lower left is spoilt in ours, the right half in the peer's
    peer[:, 200:] = 255 - peer[:, 200:]
    legend = np.zeros((24, 240, 3), np.uint8)
    views = Views(
        truth[::4, ::4],
        truth,
        peer,
        ours,
        truth,
        np.concatenate([truth[::4, ::4].repeat(3, 0).repeat(3, 1), legend]),
    )
    contest = Contest("theirs")
    contest.add("image", views, judge)
    (won,), (lost,) = contest.wins(), contest.losses()
    assert [(c.top, c.left) for c in contest.crops] == [(0, 0), (0, 128), (64, 0), (64, 128)]
    assert (won.top, won.left) == (0, 128)
    assert (lost.top, lost.left) == (64, 0)
    shown = contest.views[lost]
    part = (slice(64, 256), slice(0, 192))
    np.testing.assert_array_equal(shown.ours, ours[part])
    np.testing.assert_array_equal(shown.peer, peer[part])
    np.testing.assert_array_equal(shown.lr, views.lr[16:64, :48])
    np.testing.assert_array_equal(shown.difficulty, views.difficulty[48:192, :144])
    assert lost.psnr_y == (metrics.psnr_y(ours[part], truth[part]), metrics.psnr_y(peer[part], truth[part]))
    assert lost.dfd[1] == 0 < lost.dfd[0]


def test_an_evaluation_holds_a_contest_for_each_peer(evaluation):
    assert [contest.peer for contest in evaluation.contests] == ["oracle", "<b>odd|name</b>"]
    contest = evaluation.contests[0]
    assert contest.wins() == []
    assert [crop.stem for crop in contest.losses()] == sorted(
        evaluation.images, key=lambda stem: min(c.gain for c in contest.crops if c.stem == stem)
    )
    record = evaluation.to_dict()["contests"][0]
    assert record["peer"] == "oracle"
    assert record["crops"][0]["psnr_y"][1] is None, "the truth itself has no finite PSNR"
