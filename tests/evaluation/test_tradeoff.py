import itertools
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchscaler.evaluation.chart import line_chart
from patchscaler.evaluation.tradeoff import at, curves, end_of_gain, equal_groups, frontier, to_markdown
from patchscaler.sampling.grouping import Path

PATHS = (Path(1.0, 0), Path(0.4, 1), Path(0.9, 1), Path(0.9, 4))


def distances(seed, count):
    values = torch.rand(len(PATHS), count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return dict(zip(PATHS, values, strict=True))


@given(st.integers(0, 99), st.lists(st.integers(0, 2), min_size=1, max_size=12))
def test_a_frontier_is_the_best_of_all_assignments(seed, groups):
    distance, groups = distances(seed, len(groups)), torch.tensor(groups)
    points = frontier(distance, groups)
    assert [point.steps for point in points] == sorted(point.steps for point in points)
    for paths in itertools.product(PATHS, repeat=int(groups.max()) + 1):
        steps = sum(paths[group].steps for group in groups) / len(groups)
        mean = sum(float(distance[paths[group]][i]) for i, group in enumerate(groups)) / len(groups)
        affordable = [point.distance for point in points if point.steps <= steps + 1e-9]
        assert min(affordable) <= mean + 1e-9


def test_groups_of_one_size_follow_difficulty():
    groups = equal_groups(torch.tensor([0.9, 0.1, 0.5, 0.3, 0.7, 0.2]), 3)
    assert groups.tolist() == [2, 0, 1, 1, 2, 0]


def test_confidence_that_knows_the_gain_beats_all_other_orders():
    gain = torch.linspace(0, 1, 60)[torch.randperm(60, generator=torch.Generator().manual_seed(1))]
    distance = {Path(1.0, 0): torch.ones(60), Path(0.9, 2): 1 - gain, Path(0.9, 4): 1 - 1.001 * gain}
    found = curves(distance, quality=-gain, variance=gain.flip(0))
    for rival in ("uniform", "3 groups, shuffled", "3 groups, LR variance"):
        assert at(found["3 groups"], 1.0) < at(found[rival], 1.0) - 0.05
    assert end_of_gain(found["uniform"]).steps == 2
    assert "past N = 2" in to_markdown(found)


def test_between_points_a_curve_is_a_mixture():
    curve = frontier(
        {Path(1.0, 0): torch.tensor([3.0]), Path(0.5, 2): torch.tensor([1.0])}, torch.zeros(1).long()
    )
    assert [at(curve, steps) for steps in (0, 0.5, 1, 2, 9)] == pytest.approx([3, 2.5, 2, 1, 1])


def test_a_chart_is_well_formed_and_holds_every_point():
    chart = line_chart({"a < b": [(0, 1), (1, 0.5)], "flat": [(0.5, 1)]}, "x & y", "z")
    root = ElementTree.fromstring(chart)
    assert len(root.findall("{*}polyline")) == 2
    assert len(root.findall("{*}circle")) == 3
    assert "a < b" in [text.text for text in root.findall("{*}text")]
