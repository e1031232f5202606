import pytest
import torch
import yaml
from PIL import Image

RECIPE = """\
stage: restoration
options: {eta: 0.2}
iterations: 2
batch: 2
crop: 128
precision: fp32
"""


@pytest.fixture
def recipe(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE)
    return file


@pytest.fixture
def train(run, recipe, tmp_path, tiles_folder):
    """Call `patchscaler train` from the preset `tiny` into `tmp_path / "model"`."""

    def train(*words):
        common = ("--data", tiles_folder, "--output", tmp_path / "model", "--init", "tiny")
        return run("train", recipe, *common, *words)

    return train


def test_dry_run_prints_the_resolved_recipe_and_does_nothing(train, tmp_path, tiles_folder):
    result = train(
        "--dry-run", "--set", "batch=5", "--set", "learning_rate=1e-4", "--set", "options={eta: 1}"
    )
    assert result.exit_code == 0, result.output
    settings = yaml.safe_load(result.stdout)
    assert (settings["stage"], settings["batch"], settings["learning_rate"]) == ("restoration", 5, 1e-4)
    assert settings["options"] == {"eta": 1}
    assert settings["ema"] == 0.999
    assert (settings["init"], settings["data"]) == ("tiny", str(tiles_folder))
    assert settings["output"] == str(tmp_path / "model")
    assert [file.name for file in tmp_path.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--set", "batch"], "NAME=VALUE"),
        (["--set", "bacth=3"], "unknown fields: bacth"),
        (["--set", "batch=[1"], "--set batch"),
        (["--set", "batch=many"], "batch cannot be 'many'"),
        (["--set", "stage=nonsense"], "no stage 'nonsense'"),
        (["--set", "options={nonsense: 1}"], "nonsense"),
        (["--set", "degradation={nonsense: 1}"], "nonsense"),
        (["--init", "./nowhere"], "no model in"),
        (["--data", "./nowhere"], "nowhere"),
        (["--device", "tpu"], "tpu"),
    ],
)
def test_what_cannot_work_is_one_line(train, words, reason, tmp_path):
    result = train(*words)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("patchscaler: ")
    assert reason in line
    assert [file.name for file in tmp_path.iterdir()] == ["recipe.yaml"]


def test_a_missing_recipe_is_one_line(run, tmp_path):
    result = run("train", tmp_path / "none.yaml", "--data", tmp_path, "--output", tmp_path / "model")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert "none.yaml" in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is present")
def test_an_absent_gpu_is_one_line(train):
    result = train("--device", "cuda")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert "no GPU" in line
    assert "--device cpu" in line


def test_a_trained_model_upscales(train, run, photo, tmp_path):
    result = train("--device", "cpu")
    assert result.exit_code == 0, result.output
    model = tmp_path / "model"
    result = run("upscale", photo, "-o", tmp_path / "out.png", "--model", model, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert Image.open(tmp_path / "out.png").size == (512, 384)


def test_a_second_stage_starts_from_the_first_and_resumes(train, tmp_path):
    assert train("--device", "cpu").exit_code == 0
    model = tmp_path / "model"
    assert train("--device", "cpu", "--init", model, "--resume", "--set", "iterations=3").exit_code == 0
    records = yaml.safe_load((model / "config.json").read_text())["card"]["training"]
    assert [record["steps"] for record in records] == [2, 3]
