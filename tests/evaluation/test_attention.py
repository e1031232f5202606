import pytest
import torch

from patchscaler.evaluation.attention import look, to_markdown, watched
from patchscaler.models.patch_dit import PromptBranch

HEADS, LENGTH, ENTRIES, WIDTH = 2, 4, 3, 16


@pytest.fixture
def branch():
    torch.manual_seed(0)
    return PromptBranch(WIDTH, HEADS, prompt_width=8).requires_grad_(False)


@pytest.fixture
def tokens():
    return torch.randn(5, 9, WIDTH, generator=torch.Generator().manual_seed(1))


def prompt(seed=2):
    return torch.randn(5, ENTRIES * LENGTH + 1, 8, generator=torch.Generator().manual_seed(seed))


def test_equal_keys_share_evenly(branch, tokens):
    key, value = branch.attention.key_value(prompt())
    found = look(branch, tokens, (key[:, :, :1].expand_as(key), value), ENTRIES)
    even = torch.tensor([4 / 13, 4 / 13, 4 / 13, 1 / 13]).expand(5, -1)
    torch.testing.assert_close(found.shares, even)
    torch.testing.assert_close(found.spread, torch.full((5,), 13.0))


def test_what_the_queries_look_for_gets_the_share(branch, tokens):
    """Keys of one entry that point where a query does draw its attention from all others."""
    key, value = branch.attention.key_value(prompt())
    one = tokens[:, :1].expand(-1, 9, -1)
    attention = branch.attention
    query = attention.query_norm(attention.to_query(branch.norm(one)).unflatten(-1, (HEADS, -1))).transpose(
        1, 2
    )
    key = key.clone()
    key[:, :, LENGTH : 2 * LENGTH] = 20 * query[:, :, :1]
    found = look(branch, one, (key, value), ENTRIES)
    assert found.shares[:, 1].min() > 0.99
    torch.testing.assert_close(found.spread, torch.full((5,), float(LENGTH)), atol=0.01, rtol=0)
    torch.testing.assert_close(found.shares.sum(dim=1), torch.ones(5))


def test_a_zeroed_projection_adds_nothing(branch, tokens):
    assert look(branch, tokens, branch.attention.key_value(prompt()), ENTRIES).moved.min() > 0.01
    branch.attention.project.weight.zero_()
    branch.attention.project.bias.zero_()
    found = look(branch, tokens, branch.attention.key_value(prompt()), ENTRIES)
    assert not any(norm.any() for norm in (found.moved, found.told, found.chosen))


def test_a_prompt_of_null_prompts_alone_tells_nothing(branch, tokens):
    null = prompt()[:, -1:].expand(-1, ENTRIES * LENGTH + 1, -1)
    found = look(branch, tokens, branch.attention.key_value(null), ENTRIES)
    assert found.moved.min() > 0.01
    assert found.told.max() < 1e-5
    assert look(branch, tokens, branch.attention.key_value(prompt()), ENTRIES).told.min() > 0.01


def test_the_same_prompt_for_all_is_not_chosen(branch, tokens):
    same = prompt()[:1].expand(5, -1, -1)
    found = look(branch, tokens, branch.attention.key_value(same), ENTRIES)
    assert found.chosen.max() < 1e-5 and found.told.min() > 0.01
    assert look(branch, tokens, branch.attention.key_value(prompt()), ENTRIES).chosen.min() > 0.01
    alone = look(branch, tokens[:1], branch.attention.key_value(same[:1]), ENTRIES)
    assert alone.chosen.isnan().all()


def test_moved_is_relative_to_the_tokens_added_to(branch, tokens):
    once, twice = (
        look(branch, scale * tokens, branch.attention.key_value(prompt()), ENTRIES) for scale in (1, 2)
    )
    torch.testing.assert_close(once.moved, 2 * twice.moved)
    added = branch(tokens, branch.attention.key_value(prompt())).norm(dim=(1, 2))
    torch.testing.assert_close(once.moved, added / tokens.norm(dim=(1, 2)))


@torch.inference_mode()
def test_the_real_denoiser_is_watched_and_not_changed(make_pipeline):
    pipeline = make_pipeline()
    dit, generator = pipeline.patch_dit, torch.Generator().manual_seed(0)
    y = torch.randn(6, 4, 16, 16, generator=generator)
    condition = dit.condition_tokens(torch.randn(6, 12, 16, 16, generator=generator))
    cache = dit.prompt_cache(pipeline.make_prompt(y))
    start = torch.full((6,), 0.9)
    plain = dit(y, y, condition, cache, start, start)
    looks = {}
    with watched(dit, 3, looks):
        assert torch.equal(dit(y, y, condition, cache, start, start), plain)
        dit(y, y, condition, cache, start, start)
    assert torch.equal(dit(y, y, condition, cache, start, start), plain)
    crossing = [number for number, block in enumerate(dit.blocks, start=1) if block.cross is not None]
    assert list(looks) == crossing
    for found in looks.values():
        assert len(found) == 2
        assert all(torch.equal(a, b) for a, b in zip(found[0][:5], found[1][:5], strict=True))
        assert found[0].shares.shape == (6, 4)
        assert found[0].told.min() > 0 and found[0].chosen.min() > 0
    table = to_markdown(looks)
    assert "| entry 1 | entry 2 | entry 3 | null prompt |" in table
    assert "Last step of 12 patches" in table
    assert table.count("| block ") == len(crossing)
    branch = [block.cross for block in dit.blocks if block.cross is not None]
    for part in branch:
        part.attention.to_key_value.weight.zero_()  # all keys and values are the bias
        part.attention.project.weight.mul_(2)
        part.attention.project.bias.mul_(2)
    even = {}
    with watched(dit, 3, even):
        dit(y, y, condition, dit.prompt_cache(pipeline.make_prompt(y)), start, start)
    for found in even.values():
        torch.testing.assert_close(found[0].shares, torch.tensor([16, 16, 16, 1]).expand(6, -1) / 49)
        assert found[0].told.max() < 1e-5 < found[0].moved.min()
