import inspect
import math
import os
import subprocess
import sys
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch

from patchscaler.data.dataset import TileSet
from patchscaler.data.degradation import Degradation
from patchscaler.errors import InputError
from patchscaler.pipeline import PatchScalerPipeline
from patchscaler.sampling.grouping import Plan
from patchscaler.storage import key_space
from patchscaler.training.loop import train
from patchscaler.training.losses import restoration_loss
from patchscaler.training.recipe import Recipe
from patchscaler.training.stages import STAGES
from patchscaler.training.texture import held_out

STEPS = 4
OPTIONS = {
    "decoder": {"clean": 0.5, "detail": -2.0},
    "texture": {"entries": 10, "licences": {"textures/brick": "CC0-1.0", "train/0": "MIT"}},
    "finetune": {"alone": 1, "faithful": 0.5},
}


class Run(NamedTuple):
    """One stage, trained without a stop."""

    pipeline: PatchScalerPipeline
    before: dict[str, torch.Tensor]
    learning: set[str]
    history: list[float]
    recipe: Recipe
    folder: str


def parameters(pipeline):
    return {
        f"{name}.{key}": value
        for name, network in pipeline.networks.items()
        for key, value in network.named_parameters()
    }


@pytest.fixture(scope="module")
def tiles(tiles_folder):
    return TileSet.load(tiles_folder)


@pytest.fixture(scope="module", params=STAGES)
def run(request, make_pipeline, tiles, tmp_path_factory):
    recipe = Recipe(
        request.param, OPTIONS.get(request.param, {}), iterations=STEPS, batch=2, crop=128, warmup=1,
        precision="fp32", log_every=1,
    )  # fmt: skip
    pipeline = make_pipeline()
    torch.manual_seed(0)
    stage = STAGES[recipe.stage](pipeline, tiles, Degradation(), **recipe.options)
    trained = {id(value) for _, value in stage.trained()}
    current = parameters(pipeline)
    before = {name: value.detach().clone() for name, value in current.items()}
    learning = {name for name, value in current.items() if id(value) in trained}
    folder = tmp_path_factory.mktemp(recipe.stage)
    torch.manual_seed(0)
    history = train(pipeline, tiles, recipe, folder)
    return Run(pipeline, before, learning, history, recipe, folder)


def test_losses_are_finite_and_logged(run):
    assert len(run.history) == STEPS
    assert all(map(math.isfinite, run.history))
    assert list((run.folder / "log").rglob("events.*"))


def test_what_is_trained_changes_and_nothing_else(run):
    after = parameters(run.pipeline)
    changed = {name for name, value in run.before.items() if not torch.equal(value, after[name])}
    assert changed <= run.learning
    assert {name.partition(".")[0] for name in changed} == {name.partition(".")[0] for name in run.learning}
    assert len(changed) > len(run.learning) / 2
    assert all(value.isfinite().all() for value in after.values())


def test_the_model_is_saved_with_a_record(run, photo):
    loaded = PatchScalerPipeline.from_pretrained(run.folder, device="cpu")
    result = loaded(photo, plan=Plan.uniform(0.9, 1))
    assert result.image.isfinite().all()
    expected = run.pipeline(photo, plan=Plan.uniform(0.9, 1)).image
    assert (result.image - expected).abs().mean() < 1 / 255
    record = loaded.card["training"][-1]
    assert (record["stage"], record["steps"], record["batch"]) == (run.recipe.stage, STEPS, 2)
    assert record["options"] == run.recipe.options


def test_a_resumed_run_repeats_the_losses(run, make_pipeline, tiles, tmp_path):
    history = []
    for resume, seed in ((False, 0), (True, 1)):
        pipeline = make_pipeline()
        torch.manual_seed(seed)
        history += train(pipeline, tiles, run.recipe, tmp_path, resume=resume, stop_after=STEPS // 2)
    assert history == pytest.approx(run.history, rel=1e-6)
    after, expected = parameters(pipeline), parameters(run.pipeline)
    for name in run.learning:
        torch.testing.assert_close(after[name], expected[name], rtol=1e-5, atol=1e-6)
    statistics, wanted = (
        dict(pipeline.patch_dit.named_buffers()),
        dict(run.pipeline.patch_dit.named_buffers()),
    )
    for name, value in wanted.items():
        torch.testing.assert_close(statistics[name], value, rtol=1e-5, atol=1e-6)


def test_a_finished_run_has_nothing_to_resume(run, make_pipeline, tiles, tmp_path):
    recipe = replace(run.recipe, iterations=1)
    assert len(train(make_pipeline(), tiles, recipe, tmp_path)) == 1
    assert train(make_pipeline(), tiles, recipe, tmp_path, resume=True) == []


def test_the_averaged_weights_are_what_is_saved(make_pipeline, tiles, tmp_path):
    recipe = Recipe("restoration", iterations=1, batch=2, crop=128, precision="fp32")
    before, averaged, last = (make_pipeline() for _ in range(3))
    train(averaged, tiles, recipe, tmp_path / "averaged")
    train(last, tiles, replace(recipe, ema=0.0), tmp_path / "last")
    old, mean, new = (pipeline.restoration.stem.weight for pipeline in (before, averaged, last))
    assert (new - old).abs().max() > 1e-6
    torch.testing.assert_close(mean, old + 0.9 * (new - old), rtol=0, atol=1e-7)


def test_a_new_autoencoder_drops_the_texture_memory_of_the_old(make_pipeline, tiles, tmp_path):
    pipeline = make_pipeline()
    recipe = Recipe("autoencoder", iterations=1, batch=1, crop=128, precision="fp32")
    train(pipeline, tiles, recipe, tmp_path)
    loaded = PatchScalerPipeline.from_pretrained(tmp_path, device="cpu")
    assert loaded.texture_memory is None
    images = torch.cat([batch.images for batch in tiles.batches(1) if batch.images.shape[-1] == 256])
    with torch.no_grad():
        latent = loaded.encode(images)
    assert latent.std(dim=(0, 2, 3)).sub(1).abs().max() < 0.3


def test_the_texture_memory_holds_what_its_licences_allow(make_pipeline, tiles, tmp_path):
    pipeline = make_pipeline()
    pipeline.autoencoder.latent_std.fill_(0.001)  # latents of an untrained encoder are flat
    recipe = Recipe("texture", OPTIONS["texture"], iterations=1, batch=2, crop=128, precision="fp32")
    train(pipeline, tiles, recipe, tmp_path)
    loaded = PatchScalerPipeline.from_pretrained(tmp_path, device="cpu")
    memory = loaded.texture_memory
    assert 1 <= len(memory) <= 10
    assert memory.key_space == key_space(loaded.texture_classifier)
    torch.testing.assert_close(
        loaded.keys(memory.patches(slice(None))), memory.keys.float(), atol=0.01, rtol=0
    )
    category_of = {"textures/brick__0.webp": "brick", "textures/brick__1.webp": "brick", "train/0.png": ""}
    assert [category_of[source] for source in memory.sources] == list(memory.categories)
    licence_of = {
        "textures/brick__0.webp": "CC0-1.0",
        "textures/brick__1.webp": "CC0-1.0",
        "train/0.png": "MIT",
    }
    assert set(memory.sources) <= set(licence_of)
    assert [licence_of[source] for source in memory.sources] == list(memory.licences)
    assert tuple(pipeline.texture_classifier.config["categories"]) == ("brick", "moss")


def test_held_out_pictures_teach_the_classifier_nothing(make_pipeline, tiles):
    pipeline = make_pipeline()
    stage = STAGES["texture"](pipeline, tiles, Degradation())
    batch = tiles.sample(12, 128, torch.Generator().manual_seed(0), texture_share=0.5)
    stage.taught[:] = torch.tensor([name.startswith("textures") for name in tiles.source_names])
    kept = stage.taught[batch.sources]
    assert 0 < int(kept.sum()) < 12
    loss, _ = stage(batch, torch.Generator().manual_seed(1))
    batch.images[~kept] = 1 - batch.images[~kept]
    again, _ = stage(batch, torch.Generator().manual_seed(1))
    assert torch.equal(again, loss)
    batch.images[kept] = 1 - batch.images[kept]
    assert not torch.equal(stage(batch, torch.Generator().manual_seed(1))[0], loss)
    assert 0.05 < sum(held_out(f"picture {number}") for number in range(1000)) / 1000 < 0.15


def test_without_licences_there_is_no_texture_memory(make_pipeline, tiles, tmp_path):
    pipeline = make_pipeline()
    train(pipeline, tiles, Recipe("texture", iterations=1, batch=2, crop=128, precision="fp32"), tmp_path)
    assert pipeline.texture_memory is None


def test_every_stage_documents_its_options():
    for kind in STAGES.values():
        for name in list(inspect.signature(kind).parameters)[3:]:
            assert name in kind.__doc__


@pytest.mark.parametrize(
    ("name", "options"), [("decoder", {}), ("finetune", {"judged": None, "faithful": 0.25})]
)
def test_some_latents_are_decoded_without_the_lr_image(name, options, make_pipeline, tiles):
    pipeline = make_pipeline()
    stage = STAGES[name](pipeline, tiles, Degradation(), clean=0.25, bare=0.25, **options)

    @torch.no_grad()
    def logs():
        batch = tiles.sample(4, 128, torch.Generator().manual_seed(0))
        return stage(batch, torch.Generator().manual_seed(0))[1]

    before = logs()
    torch.nn.init.normal_(pipeline.autoencoder.decoder.lr_skip[-1].weight)
    after = logs()
    same = {kind for kind in before if kind.startswith("psnr") and after[kind] == before[kind]}
    assert same == {"psnr_bare"} and {"psnr_clean", "psnr_restored"} < after.keys()


@pytest.mark.parametrize("stage", ["autoencoder", "decoder", "finetune"])
def test_a_foreign_autoencoder_is_not_trained(stage, make_pipeline, tiles, vae):
    pipeline = make_pipeline()
    pipeline.autoencoder = vae
    with pytest.raises(InputError, match="AutoencoderKL stays as it is"):
        STAGES[stage](pipeline, tiles, Degradation())


def test_the_adversary_leaves_what_is_decoded_from_y0_alone(make_pipeline, tiles):
    def gradients(options):
        pipeline = make_pipeline()
        stage = STAGES["decoder"](pipeline, tiles, Degradation(), clean=0.5, restoration=1.0, **options)
        stage.step = 1000
        stage.prepare()
        batch = tiles.sample(4, 128, torch.Generator().manual_seed(0))
        stage(batch, torch.Generator().manual_seed(0))[0].backward()
        parts = pipeline.restoration, pipeline.autoencoder.decoder
        return [torch.cat([p.grad.flatten() for p in part.parameters()]) for part in parts]

    (restoration, decoder), (same, other) = gradients({}), gradients({"detail": 0.0})
    assert torch.equal(restoration, same) and not torch.equal(decoder, other)


@pytest.mark.parametrize(
    ("stage", "options"),
    [
        ("decoder", {"detail": 0.0, "clean": 0.0}),
        ("finetune", {"judged": "clean", "decoder": 0.0, "clean": 0.5}),
    ],
)
def test_an_adversary_needs_something_to_judge(stage, options, make_pipeline, tiles):
    with pytest.raises(InputError, match="needs"):
        STAGES[stage](make_pipeline(), tiles, Degradation(), **options)


def test_a_batch_too_small_for_its_shares_goes_without_an_adversary(make_pipeline, tiles, tmp_path):
    recipe = Recipe(
        "finetune", {"judged": "clean", "clean": 0.2}, iterations=2, batch=1, crop=128, precision="fp32"
    )
    train(make_pipeline(), tiles, recipe, tmp_path)
    train(make_pipeline(), tiles, recipe, tmp_path, resume=True)


def test_a_network_may_begin_anew(make_pipeline, tiles, tmp_path):
    before, pipeline = make_pipeline(), make_pipeline()
    recipe = Recipe(
        "finetune", {"judged": None}, fresh=["patch_dit"], iterations=1, batch=2, crop=128,
        learning_rate=0.0, precision="fp32",
    )  # fmt: skip
    train(pipeline, tiles, recipe, tmp_path)
    assert not torch.equal(pipeline.patch_dit.position, before.patch_dit.position)
    assert not pipeline.patch_dit.out.weight.any()
    for name in ("restoration", "texture_encoder"):
        assert all(map(torch.equal, pipeline.networks[name].parameters(), before.networks[name].parameters()))
    with pytest.raises(InputError, match="no network 'dit' can begin anew; there are autoencoder, "):
        train(pipeline, tiles, replace(recipe, fresh=["dit"]), tmp_path)


@pytest.mark.parametrize(("path", "learns"), [((1.0, 0), False), ((0.5, 2), True)])
def test_a_patch_that_takes_no_step_teaches_the_denoiser_nothing(path, learns, make_pipeline, tiles):
    pipeline = make_pipeline()
    stage = STAGES["finetune"](pipeline, tiles, Degradation(), paths=(path,), judged=None, decoder=0.0)
    batch = tiles.sample(2, 128, torch.Generator().manual_seed(0))
    loss, logs = stage(batch, torch.Generator().manual_seed(0))
    loss.backward()
    assert loss.isfinite() and logs["latent"] > 0 and bool(logs["moved"] > 0) == learns
    gradients = [p.grad for p in pipeline.patch_dit.parameters() if p.grad is not None]
    assert any(bool(gradient.any()) for gradient in gradients) == learns
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)


def test_sampled_images_teach_the_restoration_module_nothing(make_pipeline, tiles):
    pipeline = make_pipeline()
    options = {"judged": None, "faithful": 0.0, "restoration": 1.0}
    stage = STAGES["finetune"](pipeline, tiles, Degradation(), **options)
    batch = tiles.sample(2, 128, torch.Generator().manual_seed(0))

    def gradients(loss):
        pipeline.restoration.zero_grad()
        loss.backward()
        return [p.grad.clone() for p in pipeline.restoration.parameters() if p.grad is not None]

    all_in_all = gradients(stage(batch, torch.Generator().manual_seed(0))[0])
    lr, degraded, target = stage.pair(batch, torch.Generator().manual_seed(0))
    own = gradients(restoration_loss(pipeline.restoration(degraded, lr), target)[0])
    torch.testing.assert_close(all_in_all, own)


def test_a_frozen_decoder_stays_as_it_is(make_pipeline, tiles, tmp_path):
    before, pipeline = make_pipeline(), make_pipeline()
    options = {"alone": 0, "decoder": 0}
    recipe = Recipe("finetune", options, iterations=2, batch=2, crop=128, precision="fp32")
    train(pipeline, tiles, recipe, tmp_path)
    for ours, old in zip(pipeline.autoencoder.parameters(), before.autoencoder.parameters(), strict=True):
        assert torch.equal(ours, old)


def test_what_learns_along_has_its_own_pace(make_pipeline, tiles, tmp_path):
    def largest_steps(stage, options):
        before, pipeline = make_pipeline(), make_pipeline()
        recipe = Recipe(
            stage, options, iterations=1, batch=4, crop=128, warmup=0, decay=0.0,
            learning_rate=1e-3, weight_decay=0.0, ema=0.0, precision="fp32",
        )  # fmt: skip
        train(pipeline, tiles, recipe, tmp_path / stage)

        def largest(part):
            pairs = zip(part(pipeline).parameters(), part(before).parameters(), strict=True)
            return max(float((a - b).detach().abs().max()) for a, b in pairs)

        parts = (lambda p: p.patch_dit, lambda p: p.autoencoder.decoder, lambda p: p.restoration)
        return [pytest.approx(largest(part), rel=0.01) for part in parts]

    assert largest_steps("finetune", {"alone": 0, "decoder": 0.25}) == [1e-3, 0.25e-3, 0]
    everything = {"decoder": 0.25, "restoration": 0.5, "clean": 0.25, "judged": "clean"}
    assert largest_steps("finetune", everything) == [1e-3, 0.25e-3, 0.5e-3]
    assert largest_steps("decoder", {"restoration": 0.5}) == [0, 1e-3, 0.5e-3]


def test_two_processes_learn_as_one_from_both_their_batches(tiles_folder, tmp_path):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "-m", "patchscaler", "train", "recipe.yaml", "--data", str(tiles_folder), "--init", "tiny", "-o", "out",
    ]  # fmt: skip
    fields = "stage: restoration\niterations: 2\nbatch: 1\ncrop: 128\nprecision: fp32\nlog_every: 1\n"
    (tmp_path / "recipe.yaml").write_text(fields)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = PatchScalerPipeline.from_pretrained(tmp_path / "out", device="cpu").card["training"][-1]
    assert (record["devices"], record["batch"]) == (2, 2)
