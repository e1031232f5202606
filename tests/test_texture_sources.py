from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from patchscaler.errors import InputError
from patchscaler.texture_sources import Licences, build_memory, find_pictures


def save(file: Path, height=256, width=256, seed=0, flat=False):
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3))
    Image.fromarray(((pixels * (not flat)) + 90 * flat).astype(np.uint8)).save(file)
    return file


@pytest.fixture
def lively(make_pipeline):
    """A tiny pipeline whose latents have about the deviation that trained ones have."""
    pipeline = make_pipeline()
    pipeline.autoencoder.latent_std.fill_(0.02)
    return pipeline


def test_categories_come_from_names_then_from_folders(tmp_path):
    for name in (
        "a/wood__1.png",
        "a/photo-moss__2.png",
        "a/brick/3.png",
        "a/4.png",
        "b/5.png",
        "b/.no/6.png",
    ):
        save(tmp_path / name)
    one = find_pictures([tmp_path / "a"], Licences.parse(["MIT"], None))
    assert {file.name: origin.category for file, origin in one} == {
        "wood__1.png": "wood", "photo-moss__2.png": "photo", "3.png": "brick", "4.png": "",
    }  # fmt: skip
    both = find_pictures(
        [tmp_path / "a", tmp_path / "b", tmp_path / "a" / "brick"], Licences.parse(["MIT"], None)
    )
    assert {file.name: origin.category for file, origin in both} == {
        "wood__1.png": "wood", "photo-moss__2.png": "photo", "3.png": "brick", "4.png": "a", "5.png": "b",
    }  # fmt: skip
    assert {origin.source for _, origin in both} >= {"a/brick/3.png", "b/5.png"}


def test_the_manifest_comes_before_the_folder_and_the_folder_before_all(tmp_path):
    for name in ("a/1.png", "a/2.png", "a/in/3.png", "b/4.png"):
        save(tmp_path / name)
    (tmp_path / "list.csv").write_text("file,source,licence\na/1.png,somebody: 1.jpg,CC0-1.0\n")
    given = ["MIT", f"{tmp_path / 'a'}=CC-BY-4.0", f"{tmp_path / 'a' / 'in'}=public domain"]
    found = find_pictures([tmp_path / "a", tmp_path / "b"], Licences.parse(given, tmp_path / "list.csv"))
    assert {file.name: (origin.source, origin.licence) for file, origin in found} == {
        "1.png": ("somebody: 1.jpg", "CC0-1.0"),
        "2.png": ("a/2.png", "CC-BY-4.0"),
        "3.png": ("a/in/3.png", "public domain"),
        "4.png": ("b/4.png", "MIT"),
    }


@pytest.mark.parametrize(
    ("given", "manifest", "reason"),
    [
        ([], None, "no licence is known for"),
        (["MIT", "CC0-1.0"], None, "two licences for all"),
        (["nowhere=MIT"], None, "nowhere is not a folder"),
        (["a="], None, "write LICENCE or FOLDER=LICENCE"),
        ([], "other.csv", "no such manifest"),
        ([], "bad.csv", "columns file, source and licence"),
        ([], "empty.csv", "no licence is known for"),
    ],
)
def test_licences_that_cannot_be_known_are_refused(tmp_path, monkeypatch, given, manifest, reason):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "a" / "1.png")
    Path("bad.csv").write_text("file,source\n")
    Path("empty.csv").write_text("file,source,licence\na/1.png,me,\n")
    with pytest.raises(InputError, match=reason) as caught:
        find_pictures([Path("a")], Licences.parse(given, Path(manifest) if manifest else None))
    assert "\n" not in str(caught.value)


def test_pictures_become_entries_that_are_not_flat(lively, tmp_path):
    save(tmp_path / "a" / "rock" / "1.png", 300, 700)
    save(tmp_path / "a" / "sky" / "2.png", flat=True)
    save(tmp_path / "a" / "rock" / "small.png", 100, 400)
    (tmp_path / "a" / "rock" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    pictures = find_pictures([tmp_path / "a"], Licences.parse(["MIT"], None))
    skipped, seen = [], []
    memory, builder = build_memory(
        lively,
        pictures,
        entries=50,
        progress=lambda done, total: seen.append((done, total)),
        on_skip=skipped.append,
    )
    assert builder.seen == 8 + 4  # 2 x 4 patches, and 2 x 2 flat ones
    assert 0 < len(memory) <= 8
    assert set(memory.sources) == {"a/rock/1.png"}
    assert seen[-1] == (4, 4)
    assert ["small.png: 400x100 is smaller" in line or "broken.png: " in line for line in skipped] == [
        True,
        True,
    ]
    lively.with_memory(memory)


def test_shrinking_leaves_fewer_patches(lively, tmp_path):
    save(tmp_path / "1.png", 512, 512)
    pictures = find_pictures([tmp_path], Licences.parse(["MIT"], None))
    assert build_memory(lively, pictures, entries=4)[1].seen == 16
    assert build_memory(lively, pictures, entries=4, shrink=2)[1].seen == 4


def test_a_large_picture_gives_regions_spread_over_it(lively, tmp_path):
    save(tmp_path / "1.png", 512, 2048)
    pictures = find_pictures([tmp_path], Licences.parse(["MIT"], None))
    assert build_memory(lively, pictures, entries=4, per_picture=2)[1].seen == 32


def test_nothing_but_flat_pictures_is_one_line(lively, tmp_path):
    save(tmp_path / "1.png", flat=True)
    with pytest.raises(InputError, match="no texture found in 1 pictures"):
        build_memory(lively, find_pictures([tmp_path], Licences.parse(["MIT"], None)), entries=4)
