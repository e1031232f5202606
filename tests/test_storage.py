import dataclasses
import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file, save_file

from patchscaler.errors import ModelError
from patchscaler.models.restoration import RestorationModule
from patchscaler.pipeline import PatchScalerPipeline
from patchscaler.sampling.grouping import Path as ShortcutPath
from patchscaler.sampling.grouping import Plan
from patchscaler.storage import NETWORKS, write_plans

MEMORY = "texture_memory.safetensors"
WEIGHTS = "diffusion_pytorch_model.safetensors"
PLAN = Plan((0.5,), (ShortcutPath(0.43, 1), ShortcutPath(0.9, 2)))


def load(folder):
    return PatchScalerPipeline.from_pretrained(folder, device="cpu")


def contents(folder):
    files = (file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def saved(make_pipeline, tmp_path_factory):
    """A model folder with plans and a card of its own; not to be changed."""
    pipeline = make_pipeline()
    pipeline.plans = {"balanced": PLAN, "gentle": Plan.uniform(0.3, 1)}
    pipeline.card = {"name": "saved", "version": "7", "training": [{"stage": "restoration", "steps": 3}]}
    pipeline.sampling = dataclasses.replace(pipeline.sampling, stride=8, shortcut="plain", prompt_count=2)
    folder = tmp_path_factory.mktemp("saved")
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture
def broken(saved, tmp_path):
    """A copy to be damaged."""
    return shutil.copytree(saved, tmp_path / "broken")


def test_a_saved_model_gives_the_same_image(saved, photo, tmp_path):
    first = load(saved)
    first.save_pretrained(tmp_path / "again")
    second = load(tmp_path / "again")
    assert {**contents(tmp_path / "again"), MEMORY: b""} == {**contents(saved), MEMORY: b""}
    assert torch.equal(second.texture_memory.values, first.texture_memory.values)
    expected = first(photo, plan=Plan.uniform(0.9, 2)).image
    assert torch.equal(second(photo, plan=Plan.uniform(0.9, 2)).image, expected)


def test_half_precision_storage_costs_little(pipeline, photo, tmp_path):
    pipeline.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert loaded.dtype == torch.float32
    plan = Plan.uniform(0.9, 2)
    difference = (loaded(photo, plan=plan).image - pipeline(photo, plan=plan).image).abs()
    assert difference.mean() < 0.5 / 255
    assert 0 < difference.max() < 8 / 255


def test_settings_and_memory_are_kept(saved, pipeline):
    loaded = load(saved)
    assert loaded.plans == {"balanced": PLAN, "gentle": Plan.uniform(0.3, 1)}
    assert loaded.card["training"] == [{"stage": "restoration", "steps": 3}]
    assert loaded.sampling == dataclasses.replace(
        pipeline.sampling, stride=8, shortcut="plain", prompt_count=2
    )
    assert torch.equal(loaded.texture_memory.values, pipeline.texture_memory.values)


def test_the_fingerprint_is_that_of_the_weights(saved, pipeline, tmp_path):
    first = load(saved)
    assert first.fingerprint.startswith("7+")
    assert load(saved).fingerprint == first.fingerprint
    assert pipeline.fingerprint.endswith("+unsaved")
    first.restoration.stem.bias += 0.01
    first.save_pretrained(tmp_path)
    changed = load(tmp_path).fingerprint
    assert changed.startswith("7+")
    assert changed != first.fingerprint


def test_whoever_may_read_new_files_may_read_a_model(saved, tmp_path):
    other = tmp_path / "other"
    other.touch()
    files = [file for file in saved.rglob("*") if file.is_file()]
    assert "texture_memory.safetensors" in {file.name for file in files}
    assert {file.stat().st_mode for file in files} == {other.stat().st_mode}


def test_a_model_without_a_memory_replaces_one_with(broken):
    load(broken).with_memory(None).save_pretrained(broken)
    assert load(broken).texture_memory is None


def test_plans_are_replaced_and_nothing_else(broken):
    before = contents(broken)
    plans = {name: Plan.uniform(0.5, steps) for steps, name in enumerate(("fast", "balanced", "best"))}
    write_plans(broken, plans)
    assert load(broken).plans == plans
    after = contents(broken)
    config, changed = json.loads(before.pop("config.json")), json.loads(after.pop("config.json"))
    assert after == before
    assert {key for key in config if config[key] != changed[key]} == {"plans"}


@pytest.mark.parametrize("source", ["nowhere", "no/such/place", "."])
def test_a_folder_without_a_model_is_refused(tmp_path, source):
    with pytest.raises(ModelError, match="no model in"):
        load(tmp_path / source)


def change_config(**values):
    def change(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **values}))

    return change


def truncate(name):
    def change(folder):
        file = folder / name
        file.write_bytes(file.read_bytes()[:-200])

    return change


def drop_a_tensor(folder):
    file = folder / "restoration" / WEIGHTS
    tensors = load_file(file)
    del tensors["stem.weight"]
    save_file(tensors, file, {"format": "pt"})


def swap_autoencoder(folder):
    loaded = load(folder)
    loaded.autoencoder.latent_mean += 1
    loaded.texture_memory = None
    (folder / "other").mkdir()
    loaded.save_pretrained(folder / "other")
    shutil.rmtree(folder / "autoencoder")
    (folder / "other/autoencoder").rename(folder / "autoencoder")


def swap_restoration(folder):
    torch.manual_seed(0)
    other = RestorationModule(latent_channels=8, widths=(16, 16), blocks=(1, 1))
    other.save_pretrained(folder / "restoration")


DAMAGE = {
    "config is garbage": (lambda folder: (folder / "config.json").write_text("{garbage"), "config.json"),
    "config is binary": (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe\x00"), "config.json"),
    "config is a list": (lambda folder: (folder / "config.json").write_text("[]"), "config.json"),
    "plans are a list": (change_config(plans=[1]), "config.json"),
    "plan makes no sense": (change_config(plans={"fast": {"thresholds": [0.1], "paths": []}}), "config.json"),
    "unknown sampling": (change_config(sampling={"patch": 16}), "config.json"),
    "other kind": (change_config(_class_name="StableDiffusionPipeline"), "StableDiffusionPipeline"),
    **{
        f"no {name}": (lambda folder, name=name: shutil.rmtree(folder / name), f"the {name} in")
        for name in NETWORKS
    },
    "network of another kind": (
        lambda folder: shutil.copy(folder / "restoration/config.json", folder / "patch_dit/config.json"),
        "the patch_dit in",
    ),
    "network in the place of another": (
        lambda folder: shutil.copytree(folder / "restoration", folder / "patch_dit", dirs_exist_ok=True),
        "the patch_dit in",
    ),
    "network of another model": (swap_restoration, "the restoration in"),
    "unknown network": (
        lambda folder: (folder / "patch_dit/config.json").write_text('{"_class_name": "os"}'),
        "the patch_dit in",
    ),
    "no weights": (lambda folder: (folder / "texture_encoder" / WEIGHTS).unlink(), "the texture_encoder in"),
    "truncated weights": (truncate(f"autoencoder/{WEIGHTS}"), "the autoencoder in"),
    "missing tensor": (drop_a_tensor, "the restoration in"),
    "truncated memory": (truncate(MEMORY), "texture memory"),
    "foreign memory": (swap_autoencoder, "another autoencoder"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_what_is_broken_is_named_in_one_line(broken, kind):
    damage, part = DAMAGE[kind]
    damage(broken)
    with pytest.raises(ModelError) as caught:
        load(broken)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_models_load_in_several_threads_at_once(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    with ThreadPoolExecutor(4) as pool:
        loaded = list(
            pool.map(lambda _: PatchScalerPipeline.from_pretrained(tmp_path, device="cpu"), range(8))
        )
    expected = pipeline.restoration.state_dict()
    for model in loaded:
        for name, value in model.restoration.state_dict().items():
            assert torch.allclose(value, expected[name], atol=1e-3)
    assert torch.nn.Linear(2, 2).weight.device.type == "cpu"
