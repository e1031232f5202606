import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch.nn import functional as F

from patchscaler.errors import ModelError
from patchscaler.texture_memory import Origin, ReferenceTextureMemory


def memory_of(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return ReferenceTextureMemory(
        torch.randint(-127, 128, (count, 2, 4, 4), generator=generator, dtype=torch.int8),
        torch.rand(count, 2, 1, 1, generator=generator) + 0.1,
        F.normalize(torch.randn(count, 8, generator=generator)),
        tuple(Origin(f"image {i // 3}", "CC0-1.0", ("wood", "")[i % 2]) for i in range(count)),
        "space",
        "keys",
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 70), st.integers(1, 400))
def test_search_equals_brute_force_in_any_chunks(count, k, chunk, scores):
    memory, k = memory_of(count), min(k, count)
    queries = F.normalize(torch.randn(5, 8, generator=torch.Generator().manual_seed(count)))
    found = memory.search(queries, k, chunk=chunk, scores=scores)
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
    exclude[3] = ~exclude[3]
    found = memory.search(memory.keys, 3, exclude=exclude, scores=40).entries
    assert int(found[3].max()) < 10
    assert int(torch.cat((found[:3], found[4:])).min()) >= 10


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
    assert (again.origins, again.latent_space, again.key_space) == (memory.origins, "space", "keys")


def test_a_file_of_version_0_1_is_read(tmp_path):
    memory = memory_of(4)
    origin = {"sources": memory.sources, "licences": memory.licences, "latent_space": "space"}
    tensors = {"values": memory.values, "scales": memory.scales.half(), "keys": memory.keys.half()}
    header = {"format": "patchscaler texture memory 1", "origin": json.dumps(origin)}
    save_file(tensors, tmp_path / "old", header)
    again = ReferenceTextureMemory.load(tmp_path / "old")
    assert (again.sources, again.licences) == (memory.sources, memory.licences)
    assert (again.categories, again.key_space) == (("",) * 4, None)


def test_latents_are_kept_to_eight_bits():
    patches = torch.randn(40, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    memory = ReferenceTextureMemory.of(
        patches, lambda part: F.normalize(part.flatten(1)), [Origin("a", "MIT")] * 40,
        latent_space="space", key_space="keys",
    )  # fmt: skip
    torch.testing.assert_close(memory.patches(slice(None)), patches, atol=0.02, rtol=0)
    index = torch.tensor([[3, 1], [0, 39]])
    assert torch.equal(memory.patches(index), memory.patches(slice(None))[index])
    torch.testing.assert_close(memory.keys, F.normalize(patches.flatten(1)), atol=0.02, rtol=0)


def test_the_first_entries_are_a_memory():
    memory = memory_of(9)
    first = memory[:4]
    assert len(first) == 4
    assert first.origins == memory.origins[:4]
    assert torch.equal(first.search(memory.keys[:4], 1).entries[:, 0], torch.arange(4))


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
