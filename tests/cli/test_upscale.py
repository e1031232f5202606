import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import pyvips
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from patchscaler import PatchScalerPipeline
from patchscaler.manifest import NAME as MANIFEST


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if file.name != MANIFEST)


def error_lines(result, exit_code: int = 2) -> list[str]:
    assert result.exit_code == exit_code, result.output
    assert result.stdout == ""
    return result.stderr.splitlines()


def test_photo_becomes_four_times_as_large(upscale, photo, tmp_path):
    result = upscale(photo, "-o", tmp_path / "large.png")
    assert result.exit_code == 0, result.output
    assert Image.open(tmp_path / "large.png").size == (512, 384)
    assert names(tmp_path) == ["large.png", "photo.png"]
    (line,) = result.stdout.splitlines()
    for part in ("128x96", "512x384", "simple", "medium", "hard", "steps", "weights 0+", "large.png"):
        assert part in line


def test_output_is_what_the_pipeline_gives(upscale, photo, tmp_path, model_folder):
    assert upscale(photo, "-o", tmp_path / "a.png", "--seed", 7, "--deterministic").exit_code == 0
    pipeline = PatchScalerPipeline.from_pretrained(model_folder, device="cpu")
    expected = pipeline(np.array(Image.open(photo)), seed=7, deterministic=True).image
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), expected)
    assert upscale(photo, "-o", tmp_path / "b.png", "--seed", 8).exit_code == 0
    assert not np.array_equal(np.asarray(Image.open(tmp_path / "b.png")), expected)


def test_a_budget_takes_the_place_of_the_quality(upscale, photo, tmp_path):
    for number, (words, most) in enumerate(((("--budget", 1.5), 1.5), (("--time-budget", 1000), 4))):
        result = upscale(photo, "-o", tmp_path / f"{number}.png", "--json", *words)
        assert result.exit_code == 0, result.output
        record = json.loads(result.stdout)
        assert most - 2 / 12 <= record["mean_steps"] <= most
        assert record["quality"] is None
        assert list(record["groups"]) == ["0 steps", "1 steps", "2 steps", "4 steps"]
        assert sum(record["groups"].values()) == pytest.approx(1)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(width=st.integers(8, 40), height=st.integers(8, 40), scale=st.floats(1, 8))
def test_scale_gives_the_exact_size(upscale, width, height, scale):
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder) / "in.png", Path(folder) / "out.png"
        Image.new("RGB", (width, height), (90, 120, 30)).save(source)
        result = upscale(source, "-o", output, "--scale", repr(scale))
        assert result.exit_code == 0, result.output
        assert Image.open(output).size == (round(width * scale), round(height * scale))


def test_json_is_one_object_per_image_and_nothing_else(upscale, photo, tmp_path):
    other = tmp_path / "grey.jpg"
    Image.open(photo).convert("L").crop((0, 0, 33, 20)).save(other, dpi=(300, 300))
    result = upscale(photo, other, tmp_path / "missing.png", "-o", tmp_path / "out", "--json", "--scale", 2)
    assert result.exit_code == 1
    *done, third = map(json.loads, result.stdout.splitlines())
    first, second = sorted(
        done, key=lambda record: record["output_size"], reverse=True
    )  # the smaller may be first
    assert first["status"] == second["status"] == "done"
    assert first["output_size"] == [256, 192]
    assert second["output_size"] == [66, 40]
    assert sum(first["groups"].values()) == pytest.approx(1)
    assert set(first["timings"]) == {"encode", "restore", "sample", "decode"}
    assert second["not_kept"] == []
    assert third["status"] == "failed"
    assert "no such file" in third["error"]
    assert names(tmp_path / "out") == ["grey.jpg", "photo.png"]


def test_quiet_prints_nothing_but_warnings(upscale, photo, tmp_path):
    Image.open(photo).convert("RGBA").save(photo)
    result = upscale(photo, "-o", tmp_path / "out.jpg", "--quiet")
    assert result.exit_code == 0
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert "not kept in the output: alpha channel" in line


def test_folder_of_photos_keeps_names_and_formats(upscale, photo, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    image = Image.open(photo).crop((0, 0, 32, 32))
    for name in ("a.PNG", "b.jpeg", "c.webp", "d.tif"):
        image.save(folder / name)
    image.save(folder / "e.png", format="JPEG")
    image.save(folder / "f.gif")
    image.save(folder / "g.ppm")
    (folder / "notes.txt").write_text("not a photograph")
    result = upscale(folder, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert names(tmp_path / "out") == ["a.PNG", "b.jpeg", "c.webp", "d.tif", "e.jpg", "f.png"]
    assert Image.open(tmp_path / "out" / "a.PNG").format == "PNG"
    assert "g.ppm" in result.stderr
    assert "notes.txt" not in result.stderr


def test_output_suffix_sets_the_format(upscale, photo, tmp_path):
    assert upscale(photo, "-o", tmp_path / "out", "--output-suffix", "webp").exit_code == 0
    assert Image.open(tmp_path / "out" / "photo.webp").format == "WEBP"


def test_map_is_saved_as_a_picture(upscale, photo, tmp_path):
    result = upscale(photo, "-o", tmp_path / "out.png", "--map", tmp_path / "map.png")
    assert result.exit_code == 0, result.output
    picture = np.asarray(Image.open(tmp_path / "map.png"))
    assert picture.shape[1] == 384
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 100


def test_maps_of_several_photos_go_into_a_folder(upscale, photo, tmp_path):
    Image.open(photo).save(tmp_path / "photo.jpg")
    result = upscale(photo, tmp_path / "photo.jpg", "-o", tmp_path / "out", "--map", tmp_path / "maps")
    assert result.exit_code == 0, result.output
    assert names(tmp_path / "maps") == ["photo.jpg.map.png", "photo.png.map.png"]


def test_existing_output_is_kept_unless_told(upscale, photo, tmp_path):
    target = tmp_path / "out.png"
    target.write_bytes(b"precious")
    (line,) = error_lines(upscale(photo, "-o", target))
    assert "--overwrite" in line
    assert target.read_bytes() == b"precious"
    assert upscale(photo, "-o", target, "--overwrite").exit_code == 0
    assert Image.open(target).size == (512, 384)


def test_an_input_is_never_overwritten(upscale, photo):
    before = photo.read_bytes()
    (line,) = error_lines(upscale(photo, "-o", photo, "--overwrite"))
    assert "is an input" in line
    assert photo.read_bytes() == before


def test_two_inputs_never_meet_in_one_output(upscale, photo, tmp_path):
    Image.open(photo).save(tmp_path / "photo.jpg")
    inputs = (photo, tmp_path / "photo.jpg")
    (line,) = error_lines(upscale(*inputs, "-o", tmp_path / "out", "--output-suffix", "png"))
    assert "would both be written to" in line
    assert not (tmp_path / "out").exists()
    assert upscale(*inputs, "-o", tmp_path / "out").exit_code == 0
    assert names(tmp_path / "out") == ["photo.jpg", "photo.png"]


def test_map_and_output_never_meet(upscale, photo, tmp_path):
    (line,) = error_lines(upscale(photo, "-o", tmp_path / "out.png", "--map", tmp_path / "out.png"))
    assert "would both be written to" in line


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["-o", "{tmp}/out.bmp"], "cannot write .bmp"),
        (["-o", "{tmp}/out", "--output-suffix", "gif"], "cannot write .gif"),
        (["-o", "{tmp}/out.png", "--map", "{tmp}/map.txt"], "cannot write .txt"),
        (["-o", "{tmp}/photo.png/out.png"], "not a folder"),
        (["-o", "{tmp}/out.png", "--scale", "9"], "from 1 to 8"),
        (["-o", "{tmp}/out.png", "--scale", "nan"], "from 1 to 8"),
        (["-o", "{tmp}/out.png", "--device", "cuda:77"], "not present"),
        (["-o", "{tmp}/out.png", "--model", "{tmp}/nowhere"], "no model in"),
    ],
)
def test_options_that_cannot_work_are_one_line(upscale, photo, tmp_path, words, reason):
    (line,) = error_lines(upscale(photo, *(word.format(tmp=tmp_path) for word in words)))
    assert line.startswith("patchscaler: ")
    assert reason in line
    assert names(tmp_path) == ["photo.png"]


def test_several_inputs_need_a_folder(upscale, photo, tmp_path):
    (line,) = error_lines(upscale(photo, photo, "-o", tmp_path / "out.png"))
    assert "several inputs need a folder" in line


def test_format_too_small_for_the_result_is_refused_before_the_work(upscale, tmp_path):
    Image.new("RGB", (4096, 8)).save(tmp_path / "wide.png")
    (line,) = error_lines(upscale(tmp_path / "wide.png", "-o", tmp_path / "wide.webp"), 1)
    assert "16383" in line
    assert names(tmp_path) == ["wide.png"]


def corrupt(data: bytes) -> dict[str, bytes]:
    middle = len(data) // 2
    return {
        "empty": b"",
        "truncated": data[:middle],
        "corrupt": data[:middle] + bytes(64) + data[middle + 64 :],
        "text": b"hello, I am no picture",
        "header-only": data[:40],
    }


@pytest.mark.parametrize("kind", corrupt(b""))
def test_hostile_file_is_one_line_and_leaves_nothing(upscale, photo, tmp_path, kind):
    photo.write_bytes(corrupt(photo.read_bytes())[kind])
    (line,) = error_lines(upscale(photo, "-o", tmp_path / "out" / "large.png"), 1)
    assert line.startswith(f"patchscaler: {photo}: ")
    assert names(tmp_path) == ["photo.png"]


def test_bad_files_do_not_stop_the_others(upscale, photo, tmp_path):
    (tmp_path / "a.png").write_bytes(photo.read_bytes()[:-100])
    Image.new("RGB", (1, 1)).save(tmp_path / "b.png")
    result = upscale(tmp_path, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert names(tmp_path / "out") == ["photo.png"]
    assert len(result.stdout.splitlines()) == 1
    *lines, last = result.stderr.splitlines()
    assert last == "patchscaler: 2 of 3 failed, 1 done"
    assert len(lines) == 2
    assert any("a.png" in line for line in lines)
    assert any("b.png" in line for line in lines)


def test_folder_without_photos_is_refused(upscale, tmp_path):
    (tmp_path / "in").mkdir()
    (line,) = error_lines(upscale(tmp_path / "in", "-o", tmp_path / "out"))
    assert "no photograph" in line


def test_interrupt_while_writing_leaves_nothing_half_written(upscale, photo, tmp_path, monkeypatch):
    def half(image: pyvips.Image, path: str, **options: object) -> None:
        Path(path).write_bytes(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(pyvips.Image, "pngsave", half, raising=False)
    result = upscale(photo, "-o", tmp_path / "out.png")
    assert result.exit_code == 130
    assert result.stderr == "patchscaler: interrupted, nothing was left half-written\n"
    assert names(tmp_path) == ["photo.png"]
