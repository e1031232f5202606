import inspect
from pathlib import Path

import pytest

from patchscaler.data.degradation import DegradationConfig
from patchscaler.errors import InputError
from patchscaler.training.recipe import Recipe
from patchscaler.training.stages import STAGES

CONFIGS = Path(__file__).parents[2] / "configs"
SHIPPED = sorted(CONFIGS.rglob("*.yaml"))


@pytest.fixture
def write(tmp_path):
    def write(text):
        file = tmp_path / "recipe.yaml"
        file.write_text(text)
        return file

    return write


def test_fields_are_read_and_changed(write):
    recipe = Recipe.read(write("stage: decoder\nbatch: 8\nbetas: [0, 0.9]\noptions: {clean: 0.5}\n"), batch=4)
    assert (recipe.stage, recipe.batch, recipe.betas) == ("decoder", 4, (0.0, 0.9))
    assert recipe.options == {"clean": 0.5}
    assert recipe.crop == Recipe("decoder").crop


def test_numbers_that_yaml_reads_as_text_are_numbers(write):
    recipe = Recipe.read(write("stage: decoder\nlearning_rate: 1e-4\niterations: 2.0e+3\n"))
    assert (recipe.learning_rate, recipe.iterations) == (1e-4, 2000)
    assert isinstance(recipe.iterations, int)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("stage: decoder\nbacth: 8\n", "unknown fields: bacth"),
        ("stage: decoder\n1: 8\n", "unknown fields: 1"),
        ("batch: 8\n", "names no stage"),
        ("stage: [1\n", "cannot read the recipe"),
        ("- stage\n", "cannot read the recipe"),
        ("", "cannot read the recipe"),
        ("stage: decoder\nbatch: many\n", "batch cannot be 'many'"),
        ("stage: decoder\nbatch: 1.5\n", "batch cannot be 1.5"),
        ("stage: decoder\ncompile: 1\n", "compile cannot be 1"),
        ("stage: decoder\nbetas: 0.9\n", "betas cannot be 0.9"),
        ("stage: decoder\noptions: [1]\n", r"options cannot be \[1\]"),
        ("stage: decoder\nprecision: fp16\n", "precision cannot be 'fp16'"),
        ("stage: 3\n", "stage cannot be 3"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(write, text, reason):
    with pytest.raises(InputError, match=reason) as caught:
        Recipe.read(write(text))
    assert "\n" not in str(caught.value)


def test_missing_and_binary_files_are_refused(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x81")
    for name in ("missing.yaml", "binary.yaml"):
        with pytest.raises(InputError, match=name):
            Recipe.read(tmp_path / name)


def test_rate_warms_up_stays_and_decays():
    recipe = Recipe("decoder", learning_rate=1.0, warmup=10, decay=0.25)
    assert [recipe.rate(step, 0) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert [recipe.rate(100, share) for share in (0.2, 0.75)] == [1.0, 1.0]
    assert [recipe.rate(100, share) for share in (0.875, 1.0)] == pytest.approx([0.5, 0.0])
    assert Recipe("decoder", learning_rate=1.0, warmup=0, decay=0).rate(0, 0.9) == 1.0


def test_recipes_are_shipped():
    assert {Recipe.read(file).stage for file in SHIPPED} <= set(STAGES)
    assert len(SHIPPED) >= 6


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.relative_to(CONFIGS).as_posix())
def test_a_shipped_recipe_fits_its_stage(file):
    recipe = Recipe.read(file)
    inspect.signature(STAGES[recipe.stage]).bind("pipeline", "tiles", "degradation", **recipe.options)
    DegradationConfig.from_dict(recipe.degradation)
    assert recipe.crop % 128 == 0, "crops are whole patches"
