import copy
import json

import numpy as np
import pytest
import torch
from PIL import Image

from patchscaler import InputError, Plan
from patchscaler.evaluation import evaluate as module
from patchscaler.evaluation import metrics
from patchscaler.evaluation.evaluate import METRICS, evaluate
from patchscaler.evaluation.restored_image import RestoredImage

ROWS = ["bicubic", "oracle", "<b>odd|name</b>", "restoration only", "uniform", "fast", "balanced", "best"]


def test_rows_have_every_figure_of_every_image(evaluation):
    assert evaluation.images == ["image0", "image1"]
    assert [row.name for row in evaluation.rows] == ROWS
    assert all(len(row.values[metric]) == 2 for row in evaluation.rows for metric in METRICS)


def test_figures_are_those_of_the_metrics(evaluation, pipeline, folders):
    truth = np.asarray(Image.open(folders.hr / "image0.webp"))
    ours = pipeline(np.array(Image.open(folders.lr / "image0.png")), plan="balanced", seed=0).image
    values = evaluation.row("balanced").values
    assert values["psnr_y"][0] == metrics.psnr_y(ours, truth)
    assert values["ssim_y"][0] == metrics.ssim_y(ours, truth)
    assert values["detail_energy"][0] == metrics.detail_energy(ours, truth)


def test_a_perfect_peer_is_perfect_and_wins(evaluation):
    figures = evaluation.row("oracle").summary()
    assert figures["dfd"] == figures["detail_energy"] == figures["colour_shift"] == 0
    assert figures["ssim_y"] == pytest.approx(1)
    against = {(c.other, c.metric): c.interval for c in evaluation.comparisons}
    assert evaluation.row("bicubic").summary()["colour_drift"] == 0 < figures["colour_drift"]
    assert against["oracle", "dfd"].low > 0
    assert set(against) == {
        (name, metric) for name in ROWS if name != "balanced" for metric in ("dfd", "psnr_y")
    }


def test_steps_and_shares_follow_the_plans(evaluation, pipeline):
    shares = np.array(evaluation.row("balanced").shares)
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    assert 0 < shares[0, 0] < 1, "the test's plan must split the patches"
    np.testing.assert_allclose(evaluation.row("balanced").steps, shares @ [1, 2])
    assert evaluation.row("uniform").steps == [3, 3]
    assert evaluation.row("best").steps == [3, 3]
    assert evaluation.row("fast").values["dfd"] == evaluation.row("restoration only").values["dfd"]
    assert evaluation.row("oracle").summary()["steps"] is None


def test_correlation_counts_whole_patches(evaluation):
    assert evaluation.correlation["patches"] == 4 + 4
    assert -1 <= evaluation.correlation["confidence"] <= 1


@pytest.mark.parametrize("stem", ["image0", "image1"])
def test_patches_are_studied_in_whole_patches_of_the_image(pipeline, folders, stem):
    lr, truth = (
        np.array(Image.open(file)) for file in (folders.lr / f"{stem}.png", folders.hr / f"{stem}.webp")
    )
    low, high = (torch.from_numpy(image).permute(2, 0, 1)[None] / 255 for image in (lr, truth))
    coarse, clean = pipeline.restore(low[..., :64, :64]), pipeline.encode(high[..., :256, :256])
    found = module._study_patches(pipeline, lr, RestoredImage(pipeline, lr), clean)
    for number, (top, left) in enumerate(((0, 0), (0, 16), (16, 0), (16, 16))):
        where = (..., slice(top, top + 16), slice(left, left + 16))
        grey = metrics.luma(lr[2 * top : 2 * top + 32, 2 * left : 2 * left + 32])
        error = (coarse.latent[where] - clean[where]).square().mean()
        expected = [float(coarse.confidence[where].mean()), float(error), grey.var(ddof=1)]
        assert found[:, number].tolist() == pytest.approx(expected, rel=1e-5)


def test_grid_shift_is_that_of_the_metric(evaluation, pipeline, folders):
    for name, plan in (("restoration only", Plan.restoration_only()), ("balanced", "balanced")):
        differences = []
        for file in sorted(folders.lr.iterdir()):
            lr = np.array(Image.open(file))
            plain, shifted = (
                pipeline(image, plan=plan, seed=0).image for image in (lr, metrics.extended(lr, 16))
            )
            differences.append(metrics.shifted_difference(plain, shifted, 64))
        assert evaluation.grid_shift[name] == pytest.approx(np.mean(differences), rel=1e-9)


def test_other_seeds_change_only_what_is_sampled(pipeline, folders, evaluation):
    other = evaluate(pipeline, folders.lr, folders.hr, seed=1)
    assert other.row("best").values["dfd"] != evaluation.row("best").values["dfd"]
    assert other.row("restoration only").values["dfd"] == evaluation.row("restoration only").values["dfd"]


def test_border_and_limit(pipeline, folders):
    seen = []
    result = evaluate(
        pipeline, folders.lr, folders.hr, border=4, limit=1, progress=lambda *at: seen.append(at)
    )
    truth = np.asarray(Image.open(folders.hr / "image0.webp"))
    lr = np.array(Image.open(folders.lr / "image0.png"))
    inside = (slice(4, -4), slice(4, -4))
    expected = metrics.psnr_y(module._bicubic(lr)[inside], truth[inside])
    assert result.row("bicubic").values["psnr_y"] == [expected]
    assert seen == [(1, 1)]


def test_pictures_are_crops_of_the_same_place(evaluation, folders):
    picture = evaluation.pictures["image0"]
    truth = np.asarray(Image.open(folders.hr / "image0.webp"))
    np.testing.assert_array_equal(picture.crops["oracle"], picture.crops["truth"])
    assert picture.crops["truth"].shape == (192, 192, 3)
    windows = np.lib.stride_tricks.sliding_window_view(truth, (192, 192, 3))[::4, ::4, 0]
    places = [
        tuple(at) for at in np.ndindex(windows.shape[:2]) if (windows[at] == picture.crops["truth"]).all()
    ]
    row, column = places[0]
    lr = np.asarray(Image.open(folders.lr / "image0.png"))
    np.testing.assert_array_equal(picture.lr, lr[row : row + 48, column : column + 48])


def test_json_has_no_infinity(evaluation):
    record = json.loads(json.dumps(evaluation.to_dict(), allow_nan=False))
    oracle = next(row for row in record["rows"] if row["name"] == "oracle")
    assert oracle["values"]["psnr_y"] == [None, None]
    assert record["settings"]["seed"] == 0


def test_pick_gives_extremes_first_and_each_image_once(evaluation):
    evaluation = copy.deepcopy(evaluation)
    evaluation.images = [f"image{index}" for index in range(20)]
    evaluation.row("restoration only").values["dfd"] = [1.0] * 20
    evaluation.row("balanced").values["dfd"] = [float(index) for index in range(20)]
    picked = evaluation.pick(8)
    assert picked[:6] == ["image0", "image1", "image2", "image19", "image18", "image17"]
    assert len(set(picked)) == 8
    assert sorted(evaluation.pick(99)) == sorted(evaluation.images)


def _drop_truth(folders):
    for file in folders.hr.iterdir():
        file.rename(file.with_stem(f"other_{file.stem}"))


def _grow_truth(folders):
    Image.new("RGB", (256, 260)).save(folders.hr / "image0.webp", lossless=True)


def _shrink_pair(folders):
    Image.new("RGB", (16, 64)).save(folders.lr / "image0.png")
    Image.new("RGB", (64, 256)).save(folders.hr / "image0.webp")


def _break_file(folders):
    (folders.lr / "image0.png").write_bytes(b"not a picture")


def _deepen(folders):
    Image.fromarray(np.zeros((64, 64), np.uint16)).save(folders.lr / "image0.png")


def _double(folders):
    Image.new("RGB", (64, 64)).save(folders.lr / "image0.webp")


def _drop_peer(folders):
    (folders.peer / "image1.png").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_drop_truth, "namesake"),
        (_grow_truth, "256x260, not 256x256"),
        (_shrink_pair, "128 or more"),
        (_break_file, "cannot be read"),
        (_deepen, "mode I;16"),
        (_double, "same name"),
        (_drop_peer, "no output of oracle for image1"),
    ],
)
def test_what_cannot_be_judged_is_refused(pipeline, folders, damage, message):
    damage(folders)
    with pytest.raises(InputError, match=message):
        evaluate(pipeline, folders.lr, folders.hr, peers={"oracle": folders.peer})


def test_missing_folder_and_reserved_name(pipeline, folders, tmp_path):
    with pytest.raises(InputError, match="not a folder"):
        evaluate(pipeline, tmp_path / "nowhere", folders.hr)
    with pytest.raises(InputError, match="'bicubic'"):
        evaluate(pipeline, folders.lr, folders.hr, peers={"bicubic": folders.peer})
