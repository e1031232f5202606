import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from patchscaler.texture_memory import Origin
from patchscaler.texture_selection import MemoryBuilder, choose, liveliness


def unit(count, width=16, seed=0):
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)))


def key_of(patches):
    return F.normalize(patches.float().flatten(1), dim=1)


def builder(entries, **options):
    return MemoryBuilder(key_of, entries, **options)


def build(made):
    return made.build(latent_space="space", key_space="keys")


def test_choice_spreads_over_clusters():
    generator = torch.Generator().manual_seed(0)
    keys = F.normalize(unit(6).repeat_interleave(20, 0) + 0.02 * torch.randn(120, 16, generator=generator))
    chosen = choose(keys, [""] * 120, 6)
    assert sorted((chosen // 20).tolist()) == list(range(6))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, 70))
def test_categories_get_the_same_share_as_far_as_they_reach(labels, count):
    keys = unit(len(labels), 64)
    chosen = choose(keys, [str(label) for label in labels], count, duplicate=2.0).tolist()
    assert len(set(chosen)) == len(chosen) == min(count, len(labels))
    given_by = {label: sum(labels[i] == label for i in chosen) for label in labels}
    most = max(given_by.values())
    for label, number in given_by.items():
        assert number >= most - 1 or number == labels.count(label)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 40), st.floats(0.0, 0.95))
def test_no_two_chosen_are_near_duplicates(count, duplicate):
    keys = unit(count, 3)
    chosen = keys[choose(keys, [str(i % 2) for i in range(count)], count, duplicate)]
    similarity = chosen @ chosen.T - 2 * torch.eye(len(chosen))
    assert float(similarity.max()) < duplicate or len(chosen) == 1


def test_the_first_choice_is_the_most_typical():
    keys = F.normalize(unit(1) + 0.3 * unit(31, seed=1))
    keys[7] = -keys[7]
    assert int(choose(keys, [""] * 31, 1)) == int((keys @ keys.T).sum(dim=0).argmax())


def test_the_chosen_are_nearer_to_all_than_random_ones():
    keys = F.normalize(unit(8, 32).repeat_interleave(40, 0) + 0.15 * unit(320, 32, seed=1))
    chosen, random = (
        choose(keys, [""] * 320, 12, 1.0),
        torch.randperm(320, generator=torch.Generator().manual_seed(0)),
    )
    nearness = [float((keys @ keys[index].T).amax(dim=1).mean()) for index in (chosen, random[:12])]
    assert nearness[0] > nearness[1]


def test_more_entries_begin_with_the_fewer():
    keys, categories = unit(50), ["ab"[i % 2] for i in range(50)]
    assert choose(keys, categories, 30)[:12].tolist() == choose(keys, categories, 12).tolist()


def test_a_patch_is_as_lively_as_its_flattest_quarter():
    patches = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    patches[1, :, :4, :4] = 0.5
    patches[2] = 0.5
    lively = liveliness(patches)
    assert float(lively[0]) > 0.5
    assert lively[1:].tolist() == [0, 0]


def test_flat_and_duplicate_patches_are_left_out():
    patches = torch.randn(20, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    made = builder(30)
    made.add(patches, Origin("a", "MIT"))
    made.add(patches + 0.01, Origin("copies", "MIT"))
    made.add(torch.ones(20, 2, 8, 8), Origin("flat", "MIT"))
    memory = build(made)
    assert (made.seen, made.lively) == (60, 40)
    assert len(memory) == 20
    assert "flat" not in memory.sources
    assert (memory.latent_space, memory.key_space) == ("space", "keys")


def test_nothing_lively_makes_no_memory():
    made = builder(4)
    made.add(torch.ones(20, 2, 8, 8), Origin("flat", "MIT"))
    assert build(made) is None


def test_candidates_wait_in_bounded_space(monkeypatch):
    monkeypatch.setattr("patchscaler.texture_selection._WAITING", 64)
    made = builder(8)
    for number in range(30):
        patches = torch.randn(20, 2, 8, 8, generator=torch.Generator().manual_seed(number))
        made.add(patches, Origin(str(number), "MIT", "ab"[number % 2]))
        assert len(made._origins) <= 2 * 64
        assert len(torch.cat(made._keys)) == len(torch.cat(made._patches)) == len(made._origins)
    memory = build(made)
    assert len(memory) == 8
    assert sorted(memory.categories) == ["a"] * 4 + ["b"] * 4
    assert len(set(memory.sources)) > 2
