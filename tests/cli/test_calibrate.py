import json
import shutil

import pytest
from PIL import Image


@pytest.fixture
def model(model_folder, tmp_path):
    return shutil.copytree(model_folder, tmp_path / "model")


@pytest.fixture
def folders(photo, tmp_path):
    """One pair: LR of 64x64 and HR of 256x256."""
    low, high = tmp_path / "low", tmp_path / "high"
    for folder, side in ((low, 64), (high, 256)):
        folder.mkdir()
        Image.open(photo).resize((side, side)).save(folder / "a.png")
    return low, high


def test_plans_are_written_into_the_model_and_the_tables_shown(run, model, folders, tmp_path):
    before = json.loads((model / "config.json").read_text())
    report = tmp_path / "reports" / "paths.md"
    result = run("calibrate", *folders, "--model", model, "--report", report, "--device", "cpu")
    assert result.exit_code == 0, result.output
    after = json.loads((model / "config.json").read_text())
    plans = after.pop("plans")
    assert plans != before.pop("plans")
    assert after == before
    assert list(plans) == ["fast", "balanced", "best"]
    assert all(len(plan["paths"]) == 3 for plan in plans.values())
    text = report.read_text()
    assert text.startswith(result.stdout.strip())
    assert "](paths.svg)" in text
    assert (tmp_path / "reports" / "paths.svg").read_text().startswith("<svg")
    for words in ("| T | N |", "| 0.43 | 1 |", "| 0.9 | 4 |", "| balanced |"):
        assert words in text


def test_paths_can_be_chosen(run, model, folders):
    words = ("calibrate", *folders, "--model", model, "--device", "cpu")
    result = run(*words, "--paths", "0.5:1,0.8:3")
    assert result.exit_code == 0, result.output
    assert "| 0.8 | 3 |" in result.stdout
    assert "| 0.9 |" not in result.stdout
    for paths in ("0.5", "0.5:1.5", "2:1", "0.5:0", ""):
        result = run(*words, "--paths", paths)
        assert result.exit_code == 2
        assert "path" in result.stderr


def test_the_measure_can_be_chosen(run, model, folders):
    words = ("calibrate", *folders, "--model", model, "--device", "cpu", "--paths", "0.5:1")
    tables = {by: run(*words, "--by", by) for by in ("distance", "detail")}
    assert all(result.exit_code == 0 for result in tables.values())
    assert tables["distance"].stdout == run(*words).stdout != tables["detail"].stdout
    result = run(*words, "--by", "taste")
    assert result.exit_code == 2
    assert "distance or detail" in result.stderr


@pytest.mark.parametrize(
    ("model_name", "resize", "reason"),
    [
        ("nowhere", None, "no model in"),
        ("model", (60, 60), "256x256, not 240x240"),
        ("model", (60, 64), "not"),
    ],
)
def test_what_cannot_work_is_one_line_and_leaves_the_model(
    run, model, folders, tmp_path, model_name, resize, reason
):
    before = (model / "config.json").read_bytes()
    if resize:
        Image.new("RGB", resize).save(folders[0] / "a.png")
    result = run("calibrate", *folders, "--model", tmp_path / model_name, "--device", "cpu")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert reason in line
    assert (model / "config.json").read_bytes() == before
