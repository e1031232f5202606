import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchscaler.sampling.patches import fold, grid, tokenize, unfold, untokenize


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 2),
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from([(8, 8), (8, 4), (16, 8), (6, 2)]),
)
def test_fold_of_unfold_is_the_identity(batch, rows, cols, sizes):
    size, stride = sizes
    shape = (batch, 3, size + (rows - 1) * stride, size + (cols - 1) * stride)
    maps = torch.randn(shape, generator=torch.Generator().manual_seed(rows * 10 + cols))
    assert grid(*shape[2:], size, stride) == (rows, cols)
    patches = unfold(maps, size, stride)
    assert patches.shape == (batch * rows * cols, 3, size, size)
    torch.testing.assert_close(fold(patches, rows, cols, stride), maps, atol=1e-5, rtol=0)


def test_patches_come_row_by_row():
    maps = torch.arange(64.0).view(1, 1, 8, 8)
    assert unfold(maps, 4, 4)[:, 0, 0, 0].tolist() == [0, 4, 32, 36]


def test_overlap_is_averaged_with_falling_weights():
    patches = torch.stack((torch.zeros(1, 4, 4), torch.ones(1, 4, 4)))
    middle = fold(patches, 1, 2, 2)[0, 0, 0]
    assert middle.tolist()[:2] == [0, 0]
    assert middle.tolist()[-2:] == [1, 1]
    assert 0 < middle[2] < middle[3] < 1


def test_tokens_hold_their_square_and_come_back():
    patches = torch.randn(3, 4, 16, 16)
    tokens = tokenize(patches, 2)
    assert tokens.shape == (3, 64, 16)
    torch.testing.assert_close(tokens[1, 9], patches[1, :, 2:4, 2:4].flatten())
    assert torch.equal(untokenize(tokens, 4, 2), patches)
