import numpy as np
import pytest
import torch
from PIL import Image

from patchscaler.errors import InputError
from patchscaler.evaluation.retrieval import _judge, measure_retrieval, to_markdown


def test_ranks_are_counted_by_hand():
    """Four patches of two pictures of one category each, one more picture of the first's, one of none."""
    scores = torch.tensor([[0.9, 0.5, 0.7, 0.1, 0.2, 0.3], [0.6, 0.4, 0.5, 0.3, 0.8, 0.99]])
    own = torch.tensor([0, 1])
    sources, categories = torch.tensor([0, 0, 1, 1, 2, 3]), torch.tensor([0, 0, 1, 1, 0, -1])
    same, right = sources[own][:, None] == sources, categories[own][:, None] == categories
    found = _judge("keys", "restored", scores, own, same, ~same & (categories >= 0), right)
    assert found.own == (0.5, 0.5, 1.0)  # first; fifth
    assert found.source == (0.0, 1.0, 1.0)  # second and third, their own left out
    assert found.category == 0.5  # 0.7 is of the other category, 0.8 of the same


@pytest.fixture
def tiles(tmp_path):
    """Two tiles of each of three categories, of colours of their own."""
    folder = tmp_path / "textures"
    folder.mkdir()
    colours = np.random.default_rng(0).integers(60, 200, (3, 3))
    for kind, colour in zip(("brick", "moss", "sand"), colours, strict=True):
        for number in range(2):
            noise = np.random.default_rng(number).normal(0, 20, (256, 256, 3))
            pixels = (colour + noise).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{kind}__{number}.png")
    return folder


def test_a_report_searches_tiles_and_memory(make_pipeline, tiles):
    pipeline = make_pipeline()
    seen = []
    report = measure_retrieval(pipeline, tiles, every=True, progress=lambda *done: seen.append(done))
    assert (report.tiles, report.queries, report.searched) == (6, 24, 24 + 12)
    assert not report.unseen
    assert seen[-1] == (6, 6)
    assert report.chance == pytest.approx(4 / 20)
    assert [(row.keys, row.query) for row in report.rows] == [
        (keys, query)
        for keys in ("texture classifier", "latent", "EfficientNet-Lite0")
        for query in ("clean", "restored")
    ]
    for row in report.rows:
        assert list(row.own) == sorted(row.own)
        assert (row.head is not None) == (row.keys == "texture classifier")
        if row.query == "clean":
            assert row.own == (1.0, 1.0, 1.0)
    by_features = report.rows[4]
    assert by_features.category == 1.0, "colour alone tells these tiles apart"
    assert "| texture classifier | restored |" in to_markdown(report)


def test_only_held_out_tiles_query(make_pipeline, tiles, monkeypatch):
    pipeline = make_pipeline()
    monkeypatch.setattr("patchscaler.evaluation.retrieval.held_out", lambda source: "moss" in source)
    report = measure_retrieval(pipeline, tiles)
    assert (report.tiles, report.queries, report.searched) == (2, 8, 36)
    assert report.unseen
    monkeypatch.setattr("patchscaler.evaluation.retrieval.held_out", lambda source: False)
    with pytest.raises(InputError, match="no tile"):
        measure_retrieval(pipeline, tiles)
