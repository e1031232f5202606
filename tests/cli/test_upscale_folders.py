"""Whole folders: nothing overwritten, doubled or half-written, and a killed run goes on."""

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import patchscaler
from patchscaler.cli import app
from patchscaler.errors import InputError
from patchscaler.manifest import NAME, Manifest

SOURCE = str(Path(patchscaler.__file__).parents[1])


@pytest.fixture
def tree(tmp_path) -> Path:
    """Six photographs in three folders, one of them damaged."""
    folder = tmp_path / "photos"
    for number, name in enumerate(("a.png", "b.jpg", "trip/a.png", "trip/c.webp", "trip/day 2/d.tif")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (24, 16 + number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "trip" / "bad.png").write_bytes((folder / "a.png").read_bytes()[:200])
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but the manifest, hidden ones too."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != NAME)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def records(folder: Path) -> dict[str, dict]:
    lines = [json.loads(line) for line in (folder / NAME).read_text().splitlines()]
    assert len({line["output"] for line in lines}) == len(lines), "one line for each output"
    return {line["output"]: line for line in lines}


GOOD = ["a.png", "b.jpg", "trip/a.png", "trip/c.webp", "trip/day 2/d.tif"]


def test_a_tree_is_kept_and_a_bad_file_is_named_at_the_end(upscale, tree, tmp_path):
    result = upscale(tree, "-o", tmp_path / "out", "--recursive")
    assert result.exit_code == 1
    assert sorted(contents(tmp_path / "out")) == GOOD
    *_, bad, last = result.stderr.splitlines()
    assert "bad.png" in bad
    assert last == "patchscaler: 1 of 6 failed, 5 done"
    found = records(tmp_path / "out")
    assert sorted(found) == sorted([*GOOD, "trip/bad.png"])
    for name in GOOD:
        record = found[name]
        assert record["status"] == "done"
        assert record["bytes"] == (tmp_path / "out" / name).stat().st_size
        assert record["seed"] == 0
        assert record["seconds"] > 0
        assert sum(record["groups"].values()) == pytest.approx(1)
    assert found["trip/bad.png"]["status"] == "failed"
    assert "damaged" in found["trip/bad.png"]["error"]


def test_what_is_no_picture_stands_in_the_manifest(upscale, tree, tmp_path):
    (tree / "broken.png").write_text("no picture")
    assert upscale(tree, "-o", tmp_path / "out").exit_code == 1
    lines = map(json.loads, (tmp_path / "out" / NAME).read_text().splitlines())
    (failed,) = (line for line in lines if line["status"] == "failed")
    assert failed["input"] == str(tree / "broken.png")
    assert "not a PNG" in failed["error"]


def test_without_recursive_folders_below_are_left(upscale, tree, tmp_path):
    assert upscale(tree, "-o", tmp_path / "out").exit_code == 0
    assert sorted(contents(tmp_path / "out")) == ["a.png", "b.jpg"]


def test_the_output_folder_within_the_input_folder_is_not_searched(upscale, tree):
    (tree / "trip" / "bad.png").unlink()
    for _ in range(2):
        result = upscale(tree, "-o", tree / "large", "--recursive")
        assert result.exit_code == 0, result.output
        assert sorted(contents(tree / "large")) == GOOD


def test_calling_again_does_only_what_is_missing(upscale, tree, tmp_path):
    out = tmp_path / "out"
    upscale(tree, "-o", out, "-r")
    before = contents(out)
    (out / "trip" / "a.png").unlink()
    times = {name: (out / name).stat().st_mtime_ns for name in GOOD if name != "trip/a.png"}
    result = upscale(tree, "-o", out, "-r")
    assert result.exit_code == 1, "the damaged one is tried again"
    assert "4 of 6 are there already" in result.stderr
    assert contents(out) == before
    assert times == {name: (out / name).stat().st_mtime_ns for name in times}
    assert sorted(records(out)) == sorted([*GOOD, "trip/bad.png"])


@pytest.mark.parametrize(
    "words", [["--fit", "60x70"], ["--width", "50"], ["--output-suffix", "tif"], ["--strip"]]
)
def test_the_same_settings_are_known_again(upscale, tree, tmp_path, words):
    assert upscale(tree, "-o", tmp_path / "out", *words).exit_code == 0
    result = upscale(tree, "-o", tmp_path / "out", *words)
    assert result.exit_code == 0
    assert "2 of 2 are there already" in result.stderr


def test_another_setting_does_not_pass_for_the_same(upscale, tree, tmp_path):
    out = tmp_path / "out"
    upscale(tree, "-o", out)
    before = contents(out)
    result = upscale(tree, "-o", out, "--seed", 1)
    assert result.exit_code == 2
    assert "--overwrite" in result.stderr
    assert contents(out) == before
    assert upscale(tree, "-o", out, "--seed", 1, "--skip-existing").exit_code == 0
    assert contents(out) == before
    assert upscale(tree, "-o", out, "--seed", 1, "--overwrite").exit_code == 0
    assert contents(out) != before
    assert {record["seed"] for record in records(out).values()} == {1}


def test_a_changed_input_is_not_finished(upscale, tree, tmp_path):
    out = tmp_path / "out"
    upscale(tree, "-o", out)
    Image.new("RGB", (20, 20)).save(tree / "a.png")
    result = upscale(tree, "-o", out)
    assert result.exit_code == 2
    assert "a.png" in result.stderr


def test_files_that_were_there_are_never_overwritten(upscale, tree, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.png").write_bytes(b"precious")
    assert upscale(tree, "-o", out).exit_code == 2
    assert contents(out) == {"a.png": b"precious"}
    assert upscale(tree, "-o", out, "--skip-existing").exit_code == 0
    assert contents(out)["a.png"] == b"precious"
    assert sorted(contents(out)) == ["a.png", "b.jpg"]


def test_overwrite_and_skip_existing_exclude_each_other(upscale, tree, tmp_path):
    result = upscale(tree, "-o", tmp_path / "out", "--overwrite", "--skip-existing")
    assert result.exit_code == 2
    assert "exclude each other" in result.stderr


def test_dry_run_says_what_it_would_do_and_does_nothing(upscale, tree, tmp_path):
    result = upscale(tree, "-o", tmp_path / "out", "-r", "--dry-run", "--scale", 2)
    assert result.exit_code == 0
    assert f"{tree / 'a.png'} 16x24 -> {tmp_path / 'out' / 'a.png'} 32x48" in result.stdout
    assert not (tmp_path / "out").exists()


def test_dry_run_refuses_what_the_run_would_refuse(upscale, tree, tmp_path):
    shutil.copy(tree / "a.png", tree / "b.png")
    result = upscale(tree, "-o", tmp_path / "out", "--output-suffix", "png", "--dry-run")
    assert result.exit_code == 2
    assert "would both be written to" in result.stderr


def test_patterns(upscale, tree, tmp_path):
    result = upscale(tree / "trip" / "[ac].*", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert sorted(contents(tmp_path / "out")) == ["a.png", "c.webp"]
    result = upscale(tree / "*.xyz", "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "no file of such a name" in result.stderr


def test_a_name_that_looks_like_a_pattern_is_a_name(upscale, tree, tmp_path):
    shutil.copy(tree / "a.png", tree / "[a].png")
    assert upscale(tree / "[a].png", "-o", tmp_path / "out.png").exit_code == 0


def test_stdin_to_stdout(model_folder, tree):
    words = ["upscale", "--model", str(model_folder), "--device", "cpu", "-", "-o", "-"]
    result = CliRunner().invoke(app, words, input=(tree / "b.jpg").read_bytes())
    assert result.exit_code == 0, result.output
    assert Image.open(io.BytesIO(result.stdout_bytes)).size == (68, 96)
    assert Image.open(io.BytesIO(result.stdout_bytes)).format == "PNG"


def test_several_devices_share_the_work(upscale, tree, tmp_path):
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    upscale(tree, "-o", alone, "-r")
    result = upscale(tree, "-o", shared, "-r", "--devices", "cpu,cpu")
    assert result.exit_code == 1
    assert contents(shared) == contents(alone)


def test_two_runs_never_write_into_one_folder(tmp_path):
    with Manifest(tmp_path, {}), pytest.raises(InputError, match="another run"):
        Manifest(tmp_path, {})
    with Manifest(tmp_path, {}):
        pass


@pytest.mark.parametrize("torn", ['{"output": "a.png", "sta', "[]", "3", '{"output": 3}', "\x00\xff"])
def test_a_damaged_manifest_costs_no_more_than_its_line(upscale, tree, tmp_path, torn):
    out = tmp_path / "out"
    upscale(tree, "-o", out)
    with (out / NAME).open("a", encoding="latin-1") as file:
        file.write(torn)
    result = upscale(tree, "-o", out)
    assert result.exit_code == 0, result.output
    assert "2 of 2 are there already" in result.stderr


def start(model_folder: Path, tree: Path, out: Path) -> subprocess.Popen:
    words = ["upscale", "--model", str(model_folder), "--device", "cpu", str(tree), "-o", str(out), "-r"]
    return subprocess.Popen(
        [sys.executable, "-m", "patchscaler", *words],
        env={**os.environ, "PYTHONPATH": SOURCE},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def until_it_works(process: subprocess.Popen, out: Path) -> None:
    while process.poll() is None and not (out / NAME).exists():
        time.sleep(0.005)


def test_a_run_killed_at_any_moment_goes_on(upscale, model_folder, tree, tmp_path):
    """PATCHSCALER_KILLS sets how often; whenever a folder is done, the next one is begun."""
    kills = int(os.environ.get("PATCHSCALER_KILLS", "3"))
    out, whole = tmp_path / "out", tmp_path / "whole"
    for number in range(12):
        shutil.copy(tree / "a.png", tree / f"more {number}.png")
    process = start(model_folder, tree, whole)
    until_it_works(process, whole)
    begin = time.monotonic()
    assert process.wait() == 1, "one file is damaged"
    duration = time.monotonic() - begin
    expected, moments, in_midst = contents(whole), random.Random(0), 0
    for _ in range(kills):
        if len(shown(out)) == len(expected):
            shutil.rmtree(out)
        process = start(model_folder, tree, out)
        until_it_works(process, out)
        time.sleep(moments.uniform(0, 0.8 * duration))
        process.kill()
        process.wait()
        found = shown(out)
        assert found.items() <= expected.items(), "what has its name is whole"
        in_midst += 0 < len(found) < len(expected)
    result = upscale(tree, "-o", out, "-r")
    assert result.exit_code == 1
    assert contents(out) == expected
    assert sorted(records(out)) == sorted(records(whole))
    assert kills < 20 or in_midst > kills / 4, "most kills came before or after the work"


def shown(folder: Path) -> dict[str, bytes]:
    """The files that do not hide."""
    return {name: data for name, data in contents(folder).items() if not Path(name).name.startswith(".")}


def test_a_watched_folder_is_gone_on_with(model_folder, tree, tmp_path):
    out = tmp_path / "out"
    words = ["upscale", "--model", str(model_folder), "--device", "cpu", str(tree), "-o", str(out), "--watch"]
    process = subprocess.Popen(
        [sys.executable, "-m", "patchscaler", *words],
        env={**os.environ, "PYTHONPATH": SOURCE},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a background shell ignores it
    )
    try:
        wait_for(out / "b.jpg", process)
        shutil.copy(tree / "trip" / "c.webp", tree / "late.webp")
        wait_for(out / "late.webp", process)
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors


def wait_for(path: Path, process: subprocess.Popen) -> None:
    end = time.monotonic() + 90
    while not path.exists():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.1)
