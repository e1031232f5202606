"""The page in a real browser: Chromium, driven by Playwright, where both are installed."""

import io
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

pytest.importorskip("gradio")
playwright = pytest.importorskip("playwright.sync_api")

from patchscaler import PatchScalerPipeline  # noqa: E402
from patchscaler.cli import app as command_line  # noqa: E402
from patchscaler.service.limits import Limits  # noqa: E402
from patchscaler.service.upscaler import Upscaler  # noqa: E402
from patchscaler.ui.page import EXAMPLES, build_page, launch  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def bundled() -> PatchScalerPipeline:
    return PatchScalerPipeline.from_pretrained(device="cpu")


class Opener:
    """Opens tabs, and notes which hosts they ask."""

    def __init__(self, browser, upscaler: Upscaler, address: str) -> None:
        self.browser, self.upscaler, self.address = browser, upscaler, address
        self.hosts: set[str] = set()

    def __call__(self, width: int = 1280, height: int = 800, **device):
        context = self.browser.new_context(viewport={"width": width, "height": height}, **device)
        tab = context.new_page()
        tab.set_default_timeout(60_000)
        tab.on("request", lambda request: self.hosts.add(request.url.split("/")[2]))
        tab.goto(self.address)
        tab.wait_for_selector("#start")
        return tab


@pytest.fixture(scope="module")
def open_page(browser, bundled):
    """A page of an upscaler that starts with the bundled model, which can be exchanged; nothing leaves the machine."""
    upscaler = Upscaler(lambda: bundled, Limits(upload_bytes=200_000, pixels=40_000))
    upscaler.start()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    page = build_page(upscaler)
    address = launch(page, upscaler, host="127.0.0.1", port=port, examples=EXAMPLES, block=False)
    opener = Opener(browser, upscaler, address)
    yield opener
    page.close()
    upscaler.close(finish=False)
    assert opener.hosts <= {f"127.0.0.1:{port}", ""}, "the page asked another machine for something"


@pytest.fixture
def photo(tmp_path) -> Path:
    """A crop of an example as JPEG, with EXIF."""
    exif = Image.Exif()
    exif[0x010F] = "A camera"
    path = tmp_path / "my photo.jpg"
    Image.open(EXAMPLES / "coast.png").convert("RGB").crop((20, 10, 84, 58)).save(path, quality=92, exif=exif)
    return path


def choose(tab, file: Path) -> None:
    tab.set_input_files("#source input[type=file]", file)
    tab.wait_for_selector("patch-viewer")


def download(tab) -> tuple[str, bytes]:
    tab.wait_for_selector(".ps-download")
    with tab.expect_download() as coming:
        tab.click(".ps-download")
    return coming.value.suggested_filename, Path(coming.value.path()).read_bytes()


def position(tab) -> int:
    return int(tab.get_attribute("patch-viewer .handle", "aria-valuenow"))


def shown(tab, name: str) -> np.ndarray:
    """The stage as it is drawn."""
    return np.asarray(
        Image.open(io.BytesIO(tab.locator(f"patch-viewer .{name}").screenshot())).convert("L"), float
    )


def test_an_image_is_upscaled_compared_and_downloaded_as_the_command_line_writes_it(
    open_page, photo, tmp_path
):
    tab = open_page()
    choose(tab, photo)
    assert not tab.is_visible("patch-viewer .handle"), "there is nothing to compare with yet"
    tab.fill("#seed input", "7")
    tab.click("#start")
    name, data = download(tab)
    assert name == "my photo-x4.jpg"
    target = tmp_path / "cli.jpg"
    result = CliRunner().invoke(
        command_line, ["upscale", str(photo), "-o", str(target), "--seed", "7", "--device", "cpu"]
    )
    assert result.exit_code == 0, result.output
    assert data == target.read_bytes()
    assert Image.open(target).getexif()[0x010F] == "A camera"
    assert "64\u00d748 → 256\u00d7192" in tab.inner_text("#status")
    assert "steps" in tab.inner_text("#groups")

    box = tab.locator("patch-viewer .stage").bounding_box()
    middle = box["y"] + box["height"] / 2
    tab.mouse.move(box["x"] + box["width"] / 2, middle)
    tab.mouse.down()
    tab.mouse.move(box["x"] + box["width"] / 4, middle, steps=4)
    tab.mouse.up()
    assert abs(position(tab) - 25) <= 1
    tab.focus("patch-viewer .handle")
    tab.keyboard.press("ArrowRight")
    assert abs(position(tab) - 27) <= 1

    tab.click("patch-viewer .fit")
    plain = shown(tab, "stage")

    def change() -> float:
        return abs(shown(tab, "stage") - plain).mean()

    for button, picture in (("show-overlay", "overlay"), ("show-difference", "difference")):
        tab.click(f"patch-viewer .{button}")
        assert tab.evaluate(f"document.querySelector('patch-viewer').find('{picture}').naturalWidth") > 0
        on = change()
        tab.click(f"patch-viewer .{button}")
        off = change()
        assert on > 5 > 2 > off, (picture, on, off)
    tab.click("patch-viewer .in")
    zoomed = change()
    tab.click("patch-viewer .fit")
    assert zoomed > 5 > 2 > change(), (zoomed, change())


def test_other_choices_give_other_results_on_a_phone(open_page):
    tab = open_page(390, 844, has_touch=True, is_mobile=True)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390, "nothing is wider than the phone"
    tab.locator("#examples img").nth(1).tap()
    tab.wait_for_selector("patch-viewer")
    tab.locator("#quality").get_by_text("fast").tap()
    tab.fill("#scale input[type=number]", "2")
    tab.locator("#texture input").set_checked(False)
    tab.locator("#start").tap()
    name, data = download(tab)
    assert name == "tea-garden-x2.png"
    assert Image.open(io.BytesIO(data)).size == (256, 256)
    job = list(open_page.upscaler.jobs.values())[-1]
    assert (job.call.plan, job.call.texture) == ("fast", False)
    tab.locator("#quality").get_by_text("budget").tap()
    tab.fill("#budget input[type=number]", "0.5")
    tab.locator("#start").tap()
    tab.wait_for_selector(".ps-groups", state="detached")
    tab.wait_for_selector(".ps-groups:has-text('0 steps')")
    job = list(open_page.upscaler.jobs.values())[-1]
    assert job.call.budget == 0.5
    assert job.result.mean_steps <= 0.5


def test_cancel_stops_the_work(open_page, photo, loaded, Gate):
    upscaler = open_page.upscaler
    gate, real = Gate(loaded), upscaler.model
    upscaler.model = gate
    gate.open.clear()
    try:
        tab = open_page()
        choose(tab, photo)
        tab.click("#start")
        tab.wait_for_selector("text=of 4 patches")
        tab.click("#stop")
        tab.wait_for_selector("text=Cancelled.")
        assert upscaler.is_idle
        tab.wait_for_selector("#stop", state="hidden")
        gate.open.set()
        tab.click("#start")
        tab.wait_for_selector(".ps-download")
    finally:
        gate.open.set()
        upscaler.model = real


@pytest.mark.parametrize(
    ("name", "size", "reason"),
    [("large.png", (300, 300), "300x300 is too large"), ("tiny.png", (4, 60), "4x60 is too small")],
)
def test_what_cannot_be_used_is_said_at_once(open_page, tmp_path, name, size, reason):
    Image.new("RGB", size).save(tmp_path / name)
    tab = open_page()
    tab.set_input_files("#source input[type=file]", tmp_path / name)
    tab.wait_for_selector(f".ps-error:has-text('{reason}')")


def test_an_upload_over_the_bound_is_refused(open_page, tmp_path):
    (tmp_path / "noise.png").write_bytes(bytes(300_000))
    tab = open_page()
    tab.set_input_files("#source input[type=file]", tmp_path / "noise.png")
    tab.wait_for_selector("text=exceed the maximum")
    assert not tab.query_selector("patch-viewer")
