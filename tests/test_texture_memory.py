import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch.nn import functional as F

from patchscaler.errors import ModelError
from patchscaler.texture_memory import ReferenceTextureMemory, farthest_points


def memory_of(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return ReferenceTextureMemory(
        torch.randint(-127, 128, (count, 2, 4, 4), generator=generator, dtype=torch.int8),
        torch.rand(count, 2, 1, 1, generator=generator) + 0.1,
        F.normalize(torch.randn(count, 8, generator=generator)),
        tuple(f"image {i // 3}" for i in range(count)),
        ("CC0-1.0",) * count,
        "space",
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 70))
def test_search_equals_brute_force_in_any_chunks(count, k, chunk):
    memory, k = memory_of(count), min(k, count)
    queries = F.normalize(torch.randn(5, 8, generator=torch.Generator().manual_seed(count)))
    found = memory.search(queries, k, chunk=chunk)
    for row, query in enumerate(queries.tolist()):
        scores = [sum(a * b for a, b in zip(query, key, strict=True)) for key in memory.keys.tolist()]
        best = sorted(range(count), key=lambda i: -scores[i])[:k]
        assert found.entries[row].tolist() == best
        torch.testing.assert_close(found.similarity[row], torch.tensor([scores[i] for i in best]))
        torch.testing.assert_close(found.patches[row], memory.values[best] * memory.scales[best])


def test_excluded_entries_are_not_found():
    memory = memory_of(20)
    exclude = torch.zeros(20, 20, dtype=torch.bool)
    exclude[:, :10] = True
    assert int(memory.search(memory.keys, 3, exclude=exclude).entries.min()) >= 10


def test_the_exact_entry_comes_first():
    memory = memory_of(50)
    found = memory.search(memory.keys, 2)
    assert found.entries[:, 0].tolist() == list(range(50))
    assert (found.similarity[:, 0] >= found.similarity[:, 1]).all()


def test_a_memory_survives_its_file(tmp_path):
    memory = memory_of(7)
    memory.save(tmp_path / "memory.safetensors")
    again = ReferenceTextureMemory.load(tmp_path / "memory.safetensors")
    assert torch.equal(again.values, memory.values)
    torch.testing.assert_close(again.keys.float(), memory.keys, atol=1e-3, rtol=0)
    assert (again.sources, again.licences, again.latent_space) == (memory.sources, memory.licences, "space")


def test_other_files_are_refused_in_one_line(tmp_path):
    foreign, broken, missing = (tmp_path / name for name in ("foreign", "broken", "missing"))
    save_file({"x": torch.zeros(3)}, foreign)
    memory_of(7).save(broken)
    broken.write_bytes(broken.read_bytes()[:-100])
    for file in (foreign, broken, missing):
        with pytest.raises(ModelError) as caught:
            ReferenceTextureMemory.load(file)
        assert str(file) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_building_keeps_latents_to_eight_bits_and_drops_flat_ones():
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(40, 2, 4, 4, generator=generator)
    patches[::4] = 0.01
    memory = ReferenceTextureMemory.build(
        patches,
        lambda part: F.normalize(part.flatten(1)),
        [f"image {i}" for i in range(40)],
        ["MIT"] * 40,
        entries=30,
        latent_space="space",
    )
    assert len(memory) == 30
    origin = [int(source.split()[1]) for source in memory.sources]
    assert not [i for i in origin if i % 4 == 0], "flat patches were kept"
    torch.testing.assert_close(memory.values * memory.scales, patches[origin], atol=0.02, rtol=0)


def test_farthest_points_spread_over_clusters():
    generator = torch.Generator().manual_seed(0)
    centres = F.normalize(torch.randn(6, 16, generator=generator))
    keys = F.normalize(centres.repeat_interleave(20, 0) + 0.02 * torch.randn(120, 16, generator=generator))
    assert sorted((farthest_points(keys, 6) // 20).tolist()) == list(range(6))
