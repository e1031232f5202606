import numpy as np
import pytest
import torch
from PIL import Image

from patchscaler.pipeline import PatchScalerPipeline
from patchscaler.presets import build
from patchscaler.storage import BUNDLED, memory_file
from patchscaler.texture_memory import ReferenceTextureMemory
from patchscaler.texture_notice import LICENCES, notice


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny untrained model without a memory, whose latents have about the deviation of trained ones."""
    torch.manual_seed(0)
    pipeline = build("tiny")
    pipeline.autoencoder.latent_std.fill_(0.02)
    for parameter in pipeline.patch_dit.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("model")
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    for number, kind in enumerate(("wood", "wood", "moss")):
        random = np.random.default_rng(number)
        colours = random.integers(0, 256, (2, 2, 3)).repeat(128, axis=0).repeat(128, axis=1)  # a patch each
        pixels = (colours + random.normal(0, 40, (256, 256, 3))).clip(0, 255).astype(np.uint8)
        (folder / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / kind / f"{number}.png")
    return folder


@pytest.fixture
def built(run, model, pictures, tmp_path):
    """A memory file made by the command, and what the command said."""
    file = tmp_path / "mine.safetensors"
    options = ("--model", model, "--device", "cpu", "--entries", 8, "--licence", "CC0-1.0", "--duplicate", 1)
    return file, run("memory", "build", pictures, "-o", file, *options)


def test_build_keeps_the_same_share_of_every_category(built):
    file, result = built
    assert result.exit_code == 0, result.output
    memory = ReferenceTextureMemory.load(file)
    assert sorted(memory.categories) == ["moss"] * 4 + ["wood"] * 4
    assert set(memory.licences) == {"CC0-1.0"}
    assert set(memory.sources) == {f"pictures/{name}.png" for name in ("wood/0", "wood/1", "moss/2")}
    assert "from 3 pictures, 12 patches, 12 of them not flat" in result.stdout


def test_show_sums_up_and_gives_the_notice(run, built):
    file, _ = built
    result = run("memory", "show", file)
    assert result.exit_code == 0, result.output
    assert "8 entries of 3 pictures" in result.stdout
    assert "moss 4" in result.stdout
    assert (
        run("memory", "show", file, "--notice").stdout.strip()
        == notice(ReferenceTextureMemory.load(file)).strip()
    )


def test_show_draws_the_entries(run, built, model, tmp_path):
    file, _ = built
    sheet = tmp_path / "sheet.png"
    result = run("memory", "show", file, "-o", sheet, "--model", model, "--device", "cpu")
    assert result.exit_code == 0, result.output
    pixels = np.asarray(Image.open(sheet))
    assert pixels.shape[1] > 12 * 128
    first, last = pixels[40:160, 16:128], pixels[40:160, 16 + 7 * 136 : 128 + 7 * 136]
    assert first.std() > 10
    assert last.std() > 10
    assert np.ptp(pixels[40:160, 16 + 8 * 136 :], axis=(0, 1)).max() == 0, "no ninth entry"
    assert run("memory", "show", file, "-o", sheet, "--model", model).exit_code == 2, "it exists"


def test_show_draws_what_a_photo_retrieves(run, built, model, photo, tmp_path):
    file, _ = built
    sheet = tmp_path / "sheet.png"
    options = ("--photo", photo, "--photo", photo, "--patches", 2, "--model", model, "--device", "cpu")
    result = run("memory", "show", file, "-o", sheet, *options)
    assert result.exit_code == 0, result.output
    pixels = np.asarray(Image.open(sheet))
    half = len(pixels) // 2
    assert pixels.shape[1] > 256 + 5 * 128
    assert np.array_equal(pixels[:half], pixels[half:]), "the same photo twice"
    assert pixels[:half, -128:-8].std() > 10, "an entry is drawn in the last column"


def test_upscale_takes_a_memory_and_another_picture_comes_out(run, built, model, photo, tmp_path):
    file, _ = built
    pipeline = PatchScalerPipeline.from_pretrained(model, device="cpu", memory=file)
    assert len(pipeline.texture_memory) == 8
    outputs = []
    for number, options in enumerate(([], ["--memory", file], ["--memory", file, "--no-texture"])):
        output = tmp_path / f"{number}.png"
        words = ("upscale", photo, "-o", output, "--model", sampling(model), "--device", "cpu", *options)
        result = run(*words)
        assert result.exit_code == 0, result.output
        outputs.append(np.asarray(Image.open(output)))
    plain, prompted, off = outputs
    assert not np.array_equal(plain, prompted)
    assert np.array_equal(plain, off)


def sampling(model):
    """The model with plans that take steps."""
    from patchscaler import Plan
    from patchscaler.storage import write_plans

    write_plans(model, dict.fromkeys(("fast", "balanced", "best"), Plan.uniform(0.9, 1)))
    return model


def test_ablate_prints_a_table(run, built, model, pictures, tmp_path):
    file, _ = built
    low = tmp_path / "low"
    low.mkdir()
    Image.open(pictures / "moss" / "2.png").resize((64, 64)).save(low / "2.png")
    options = ("--model", model, "--memory", file, "--larger", file, "--plan", "0.9:1", "--device", "cpu")
    sheet = tmp_path / "sheet.png"
    options += ("--picture", sheet, "--patches", 2)
    result = run("memory", "ablate", low, pictures / "moss", *options)
    assert result.exit_code == 0, result.output
    assert np.asarray(Image.open(sheet)).shape[1] > 7 * 128
    refused = run("memory", "ablate", low, pictures / "moss", *options)
    assert refused.exit_code == 2 and "exists already" in refused.stderr
    for words in (
        "| no prompt |",
        "| cross-attention |",
        "| top 3 |",
        "| top 3 of 8 |",
        "guidance",
        "own truth",
        "1 images",
    ):
        assert words in result.stdout


def test_report_prints_a_table(run, built, model, tiles_folder):
    file, _ = built
    options = ("--model", model, "--memory", file, "--every", "--device", "cpu")
    result = run("memory", "report", tiles_folder / "textures", *options)
    assert result.exit_code == 0, result.output
    for words in (
        "| texture classifier | restored |",
        "| latent | clean |",
        "| EfficientNet-Lite0 |",
        "16 patches",
    ):
        assert words in result.stdout


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("build", "nowhere", "-o", "x.safetensors", "--licence", "MIT"), "nowhere is not a folder"),
        (("build", "pictures", "-o", "x.safetensors"), "no licence is known"),
        (("build", "pictures", "-o", "x.bin", "--licence", "MIT"), "suffix .safetensors"),
        (("build", "empty", "-o", "x.safetensors", "--licence", "MIT"), "holds no picture"),
        (("show", "pictures/wood/0.png"), "cannot read the texture memory"),
        (("show", "--photo", "pictures/wood/0.png"), "--photo needs -o"),
        (("show", "-o", "sheet.xyz"), "sheet.xyz"),
        (("show", "-o", "sheet.png"), "no texture memory"),
        (("show",), "no texture memory"),
        (("ablate", "pictures/wood", "pictures/moss"), "no texture memory"),
        (("ablate", "pictures/wood", "pictures/moss", "--plan", "0.9"), "--plan 0.9"),
        (("report", "pictures/wood"), "held out"),
    ],
)
def test_what_cannot_work_is_one_line(run, model, pictures, tmp_path, monkeypatch, words, reason):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    result = run("memory", *words, "--model", sampling(model))
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert reason in line
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_memory_of_other_latents_is_refused_in_one_line(run, built, model_folder, photo, tmp_path):
    file, _ = built
    result = run("upscale", photo, "-o", tmp_path / "x.png", "--memory", file, "--model", model_folder)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert "another autoencoder" in line
    assert not (tmp_path / "x.png").exists()


def test_the_bundled_notice_names_what_the_bundled_memory_holds():
    memory = ReferenceTextureMemory.load(memory_file(BUNDLED))
    assert set(memory.licences) <= LICENCES.keys()
    assert notice(memory).strip() in (BUNDLED / "NOTICE").read_text(encoding="utf-8")
