"""The page: what can be chosen, and what happens when a button is pressed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import gradio as gr

from patchscaler.batch import CallOptions
from patchscaler.errors import PatchScalerError
from patchscaler.imaging.formats import FORMATS
from patchscaler.imaging.io import OutputOptions, probe_photo
from patchscaler.imaging.size import SCALES, TargetSize
from patchscaler.service.job import UpscaleJob, without_names
from patchscaler.service.upscaler import TooLargeError, Upscaler
from patchscaler.ui import views

EXAMPLES = Path(__file__).parent / "examples"
_BUDGET = "budget"
_POLL_SECONDS = 0.15
_HEAD = '<div class="ps-head"><h1>PatchScaler</h1><span>more steps where the picture is hard</span></div>'
_EMPTY = '<div class="ps-empty">Drop an image on the left, or choose an example.</div>'
_LOOK = "() => matchMedia('(max-width: 700px)').matches && document.querySelector('#viewer').scrollIntoView()"
_SUFFIXES = [suffix for form in FORMATS.values() for suffix in form.suffixes]


def build_page(upscaler: Upscaler, examples: Path = EXAMPLES) -> gr.Blocks:
    """The page of a started upscaler.

    Args:
        upscaler: runs the jobs.
        examples: a folder whose photographs can be chosen.
    """
    limits = upscaler.limits
    pictures = sorted(file for file in examples.iterdir() if file.suffix.lower() in _SUFFIXES)
    bound = f"up to {limits.upload_bytes / 2**20:.3g} MiB and {limits.pixels / 1e6:.3g} megapixels"
    with gr.Blocks(title="PatchScaler", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.HTML(_HEAD)
        current = gr.State()
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                source = gr.File(label=f"Image, {bound}", file_types=_SUFFIXES, height=150, elem_id="source")
                samples = gr.Dataset(
                    components=[gr.Image(render=False)],
                    samples=[[str(file)] for file in pictures],
                    label="Examples",
                    visible=bool(pictures),
                    elem_id="examples",
                )
                with gr.Group():
                    scale = gr.Slider(*SCALES, 4, step=0.25, label="Scale", elem_id="scale")
                    quality = gr.Radio(
                        ["fast", "balanced", "best", _BUDGET],
                        value="balanced",
                        label="Quality",
                        elem_id="quality",
                    )
                    budget = gr.Slider(
                        0, 4, 1, step=0.25, label="Mean steps a patch", visible=False, elem_id="budget"
                    )
                    fidelity = gr.Slider(0, 1, 0, step=0.05, label="Fidelity", elem_id="fidelity")
                    texture = gr.Checkbox(True, label="Texture prompt", elem_id="texture")
                    seed = gr.Number(0, label="Seed", precision=0, minimum=0, elem_id="seed")
                with gr.Row():
                    start = gr.Button("Upscale", variant="primary", elem_id="start")
                    stop = gr.Button("Cancel", visible=False, elem_id="stop")
            with gr.Column(scale=3, min_width=320):
                viewer = gr.HTML(_EMPTY, elem_id="viewer")
                status = gr.HTML(elem_id="status")
                groups = gr.HTML(elem_id="groups")
        choices = [source, scale, quality, budget, fidelity, texture, seed]
        outputs = [viewer, status, groups, current, start, stop]

        def choose(path: str | None) -> dict[Any, Any]:
            return {**_clear(), viewer: _EMPTY, **(_shown(path) if path else {})}

        def _shown(path: str) -> dict[Any, Any]:
            try:
                photo = probe_photo(Path(path))
                if photo.width * photo.height > limits.pixels:
                    raise TooLargeError(f"{photo.width}x{photo.height} is too large: {bound}")
                return {viewer: views.show_input(Path(path), limits.pixels)}
            except PatchScalerError as error:
                return {status: views.error_line(without_names(error, Path(path)))}

        def _clear() -> dict[Any, Any]:
            return {status: "", groups: ""}

        def run(
            path: str | None,
            scale: float,
            quality: str,
            budget: float,
            fidelity: float,
            texture: bool,
            seed: float,
        ) -> Iterator[dict[Any, Any]]:
            if path is None:
                yield {status: views.error_line("choose an image first")}
                return
            try:
                plan, most = ("best", budget) if quality == _BUDGET else (quality, None)
                call = CallOptions(plan, int(seed or 0), texture, budget=most, fidelity=fidelity)
                job = _submit(upscaler, Path(path), scale, call)
            except PatchScalerError as error:
                yield {status: views.error_line(without_names(error, Path(path)))}
                return
            yield {
                groups: "",
                current: job.id,
                start: gr.Button(interactive=False),
                stop: gr.Button(visible=True),
            }
            try:
                while not job.is_final:
                    yield {
                        status: views.progress_lines(job, upscaler.queue.position(job), _latents(upscaler))
                    }
                    wait([job.ended], _POLL_SECONDS)
            finally:
                upscaler.cancel(job)  # the page was left
            yield {
                start: gr.Button(interactive=True),
                stop: gr.Button(visible=False),
                **_finished(job, Path(path).stem),
            }

        def _finished(job: UpscaleJob, stem: str) -> dict[Any, Any]:
            if job.state == "done":
                assert upscaler.model is not None
                model = upscaler.model
                patch = model.sampling.stride * model.autoencoder.factor // model.scale
                return {
                    viewer: views.show_result(job, patch, limits.output_pixels),
                    status: views.done_lines(job, stem),
                    groups: views.group_lines(job),
                }
            upscaler.drop(job)
            return {status: views.error_line("Cancelled." if job.state == "cancelled" else f"{job.error}")}

        def cancel(id: str | None) -> None:
            if job := upscaler.jobs.get(id or ""):
                upscaler.cancel(job)

        source.change(choose, source, [viewer, status, groups], show_progress="hidden")
        quality.change(
            lambda chosen: gr.Slider(visible=chosen == _BUDGET), quality, budget, show_progress="hidden"
        )
        samples.click(lambda sample: sample[0], samples, source, show_progress="hidden")
        start.click(None, js=_LOOK)
        start.click(run, choices, outputs, show_progress="hidden", concurrency_limit=limits.waiting)
        stop.click(cancel, current, show_progress="hidden", queue=False)
    return page


def launch(
    page: gr.Blocks, upscaler: Upscaler, *, host: str, port: int, examples: Path, block: bool = True
) -> str:
    """Serve the page; gives its address. Nothing on it comes from another machine."""
    here = Path(__file__).parent
    theme = gr.themes.Default(primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["monospace"])
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        max_file_size=upscaler.limits.upload_bytes,
        allowed_paths=[str(upscaler.folder), str(examples.resolve())],
        head=f"<script>{(here / 'viewer.js').read_text()}</script>",
        css=(here / "style.css").read_text(),
        theme=theme,
        footer_links=[],
        ssr_mode=False,
        share=False,
        quiet=True,
        prevent_thread_lock=not block,
    )
    return address


def _latents(upscaler: Upscaler) -> int:
    """Latents that a patch adds to an image."""
    return upscaler.model.sampling.stride**2 if upscaler.model else 1


def _submit(upscaler: Upscaler, path: Path, scale: float, call: CallOptions) -> UpscaleJob:
    folder = upscaler.new_folder()
    try:
        source = folder / "upload"
        shutil.copyfile(path, source)
        return upscaler.submit(source, call, TargetSize(scale), OutputOptions(), with_map=True)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
