"""What the page shows of a job: pictures for the viewer, and a few lines of HTML."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import numpy as np
from PIL import Image, ImageDraw

from patchscaler.imaging.io import read_photo
from patchscaler.result import STAGES

if TYPE_CHECKING:
    from patchscaler.result import UpscaleResult
    from patchscaler.service.job import UpscaleJob

SHOWN_SIDE = 3072
"""Longest side of the pictures in the viewer; the file to download has all pixels."""

_THUMBNAIL_SIDE = 1024
_GAIN = 4
# Dark = easy, yellow = hard, as in the difficulty map; safe for colour-blind eyes.
_COLOURS = ((68, 1, 84), (33, 145, 140), (253, 231, 37))


def show_input(source: Path, max_pixels: int) -> str:
    """The viewer with an input alone; InputError if it cannot be read."""
    picture = _picture(source, max_pixels)
    width, height = picture.size
    picture.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
    file = io.BytesIO()
    picture.save(file, "PNG" if picture.mode == "RGBA" else "JPEG", quality=90)
    kind = "png" if picture.mode == "RGBA" else "jpeg"
    url = f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
    return f'<patch-viewer before="{url}" width="{width}" height="{height}"></patch-viewer>'


def show_result(job: UpscaleJob, patch: int, max_output_pixels: int) -> str:
    """The viewer with a finished job, whose pictures go into the job's folder.

    Args:
        job: done, with its map.
        patch: step from patch to patch in input pixels.
        max_output_pixels: of the service's outputs.
    """
    assert job.result is not None and job.record is not None
    before = _picture(job.job.source, max_output_pixels)
    after = _picture(job.job.output, max_output_pixels)
    chart = overlay(job.result, len(job.record["groups"]), patch, before.size)
    after.thumbnail((SHOWN_SIDE, SHOWN_SIDE), Image.Resampling.LANCZOS)
    difference = difference_view(before, after)
    before.thumbnail((SHOWN_SIDE, SHOWN_SIDE), Image.Resampling.LANCZOS)
    pictures = {"before": before, "after": after, "overlay": chart, "difference": difference}
    urls = " ".join(
        f'{name}="{_url(_save(picture, job.folder / f"shown-{name}"))}"' for name, picture in pictures.items()
    )
    return f'<patch-viewer {urls} width="{after.width}" height="{after.height}"></patch-viewer>'


def overlay(result: UpscaleResult, groups: int, patch: int, size: tuple[int, int]) -> Image.Image:
    """Which of the groups each patch is in, as translucent colours with frames, for an input of `size` pixels."""
    zoom = max(1, -(-1024 // max(size)))
    picture = Image.new("RGBA", (size[0] * zoom, size[1] * zoom))
    draw = ImageDraw.Draw(picture)
    side = patch * zoom
    for (row, column), group in np.ndenumerate(result.groups):
        colour = group_colour(int(group), max(groups, 3))
        x, y = column * side, row * side
        draw.rectangle((x, y, x + side - 1, y + side - 1), (*colour, 110), (*colour, 255), max(1, zoom // 3))
    return picture


def difference_view(before: Image.Image, after: Image.Image) -> Image.Image:
    """Where and how much an output differs from bicubic interpolation of its input, four times as bright."""
    plain = before.convert("RGB").resize(after.size, Image.Resampling.BICUBIC)
    change = np.asarray(after.convert("RGB"), np.int16) - np.asarray(plain, np.int16)
    return Image.fromarray((_GAIN * np.abs(change)).clip(0, 255).astype(np.uint8))


def group_colour(group: int, count: int) -> tuple[int, int, int]:
    """Colour of a group, 0 = simplest."""
    stops = np.linspace(0, max(1, count - 1), len(_COLOURS))
    red, green, blue = (round(np.interp(group, stops, channel)) for channel in zip(*_COLOURS, strict=True))
    return red, green, blue


def progress_lines(job: UpscaleJob, before: int, latents: int) -> str:
    """How far a job is: one bar for each stage, and what is done of the stage in work.

    Args:
        job: not at its end.
        before: how many jobs wait before it.
        latents: in a patch.
    """
    progress = job.progress
    if job.state == "waiting" or progress is None:
        what = f"Waiting for {before} before it" if before else "Waiting for its turn"
        current, share = -1, 0.0
    else:
        current, share = STAGES.index(progress.stage), progress.done / max(1, progress.total)
        if progress.stage == "sample":
            what = f"{progress.done} of {progress.total} patch steps"
        else:
            what = f"{progress.done // latents} of {progress.total // latents} patches"
    steps = "".join(
        f'<span class="{"now" if index == current else ""}"><i><b style="width:{_filled(index, current, share):.0f}%">'
        f"</b></i><small>{stage}</small></span>"
        for index, stage in enumerate(STAGES)
    )
    return (
        f'<div class="ps-status" role="status"><div class="ps-steps">{steps}</div><small>{what}</small></div>'
    )


def done_lines(job: UpscaleJob, stem: str) -> str:
    """What came out, with the link to download it.

    Args:
        job: done.
        stem: of the input's name, as a file of ours already has it.
    """
    record = job.record or {}
    (width, height), (wide, high) = record["input_size"], record["output_size"]
    text = (
        f"{width}&times;{height} → <b>{wide}&times;{high}</b> in {record['seconds']:.1f} s on {record['device']}, "
        f"{record['mean_steps']:.1f} steps a patch"
    )
    named = job.folder / f"{stem[:80]}-x{wide / width:.3g}{job.job.output.suffix}"
    named.hardlink_to(job.job.output)  # the browser takes the name from here
    link = f'<a class="ps-download" href="{html.escape(_url(named))}" download>Download</a>'
    lost = ", ".join(record["not_kept"])
    note = f'<div class="ps-note">Not kept in the output: {html.escape(lost)}</div>' if lost else ""
    return f'<div class="ps-status" role="status"><div class="ps-done"><p>{text}</p>{link}</div>{note}</div>'


def group_lines(job: UpscaleJob) -> str:
    """Share and steps of each group of a finished job, under a bar that is divided as the patches are."""
    assert job.result is not None and job.record is not None
    result, names, bar, legend = job.result, list(job.record["groups"]), [], []
    for group, name in enumerate(names):
        inside = result.groups == group
        red, green, blue = group_colour(group, max(len(names), 3))
        colour = f"background:rgb({red} {green} {blue})"
        share = 100 * float(inside.mean())
        counted = inside.any() and "steps" not in name
        steps = f", {float(result.steps[inside].mean()):.3g} steps" if counted else ""
        bar.append(f'<i style="width:{share:.2f}%;{colour}"></i>')
        legend.append(f'<span><i style="{colour}"></i>{name} {share:.0f} %{steps}</span>')
    return (
        f'<div class="ps-groups"><div class="bar">{"".join(bar)}</div>'
        f'<div class="legend">{"".join(legend)}</div></div>'
    )


def error_line(message: str) -> str:
    """Why there is no result."""
    return f'<div class="ps-error" role="alert">{html.escape(message)}</div>'


def _filled(index: int, current: int, share: float) -> float:
    return 100 * share if index == current else 100.0 * (index < current)


def _picture(path: Path, max_pixels: int) -> Image.Image:
    """A photograph as 8-bit sRGB, upright, with its transparency."""
    photo = read_photo(path, max_pixels=max_pixels)
    pixels = photo.pixels if photo.alpha is None else np.dstack((photo.pixels, photo.alpha))
    return Image.fromarray(pixels if pixels.dtype == np.uint8 else (pixels // 257).astype(np.uint8))


def _save(picture: Image.Image, path: Path) -> Path:
    target = path.with_suffix(".png" if picture.mode == "RGBA" else ".jpg")
    picture.save(target, compress_level=1, quality=95, subsampling=0)  # each format takes its own
    return target


def _url(path: Path) -> str:
    return f"gradio_api/file={quote(str(path))}"
