import base64
import io
import json
import re
from html.parser import HTMLParser

import pytest
from PIL import Image
from typer.testing import CliRunner

from patchscaler.cli import app
from patchscaler.evaluation.report import to_html, to_json, to_markdown


class Tags(HTMLParser):
    """Collects start tags and checks that elements close in order."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, page: str):
        super().__init__()
        self.open, self.found = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_markdown_shows_rounded_figures_in_whole_tables(evaluation):
    text = to_markdown(evaluation)
    dfd = evaluation.row("balanced").summary()["dfd"]
    line = next(line for line in text.splitlines() if line.startswith("| balanced"))
    assert f" {dfd:.4f} |" in line
    table = [line for line in text.splitlines() if line.startswith("|")]
    bars = {len(re.findall(r"(?<!\\)\|", line)) for line in table}
    assert bars == {4, 12}
    peer = next(line for line in table if "odd" in line)
    assert "inf" in peer and "n/a" in peer


def test_json_is_the_whole_record(evaluation):
    record = json.loads(to_json(evaluation))
    assert record == json.loads(json.dumps(evaluation.to_dict()))
    assert record["images"] == ["image0", "image1"]


def test_html_is_well_formed_and_needs_nothing_from_outside(evaluation):
    page = to_html(evaluation)
    tags = Tags(page)
    assert tags.open == []
    assert "<b>" not in page
    assert not any(tag in ("script", "link", "iframe") for tag, _ in tags.found)
    images = [attributes["src"] for tag, attributes in tags.found if tag == "img"]
    assert page.count("is nearer to the truth than oracle</h2>") == 1
    assert page.count("Where &lt;b&gt;odd|name&lt;/b&gt; is nearer</h2>") == 1
    assert (
        len(images) == 2 * (1 + 8 + 1 + 1) + 2 * 2 * 6
    )  # rows of all images, and losses to two perfect peers
    assert all(source.startswith("data:image/webp;base64,") for source in images)
    assert "http" not in re.sub(r"base64,[^\"]*", "", page)


def test_html_pictures_decode_to_the_crops(evaluation):
    page = to_html(evaluation, count=1)
    stem = evaluation.pick(1)[0]
    source = re.search(rf'<img src="data:image/webp;base64,([^"]*)" alt="{stem}: truth"', page)
    assert source is not None
    image = Image.open(io.BytesIO(base64.b64decode(source[1]))).convert("RGB")
    assert (image.tobytes()) == evaluation.pictures[stem].crops["truth"].tobytes()


def test_html_prints_the_figures_of_a_crop_below_it(evaluation):
    crop = evaluation.contests[0].losses()[0]
    page = to_html(evaluation)
    assert f"balanced<br><small>DFD {crop.dfd[0]:.3f}, PSNR-Y {crop.psnr_y[0]:.2f} dB</small>" in page
    assert "oracle<br><small>DFD 0.000, PSNR-Y inf dB</small>" in page
    assert f"of {len(evaluation.contests[0].crops)} crops, balanced is nearer" in to_markdown(evaluation)


@pytest.fixture
def run(pipeline, folders, tmp_path):
    pipeline.save_pretrained(tmp_path / "model")

    def run(*words):
        fixed = ["evaluate", folders.lr, folders.hr, "-o", tmp_path / "out", "--model", tmp_path / "model"]
        return CliRunner().invoke(app, [str(word) for word in (*fixed, "--device", "cpu", *words)])

    return run


def test_command_writes_three_reports_and_prints_the_table(run, folders, tmp_path):
    result = run("--peer", f"theirs={folders.peer}", "--limit", 1, "--border", 4, "--seed", 3)
    assert result.exit_code == 0, result.output
    assert "PSNR-Y" in result.output
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "report.html", "report.json", "report.md",
    ]  # fmt: skip
    settings = json.loads((tmp_path / "out/report.json").read_text())["settings"]
    assert (settings["border"], settings["seed"], list(settings["peers"])) == (4, 3, ["theirs"])


def test_command_replaces_reports_only_when_told(run, tmp_path):
    (tmp_path / "out").mkdir()
    old = tmp_path / "out/report.md"
    old.write_text("old")
    result = run("--limit", 1)
    assert result.exit_code == 2
    assert old.read_text() == "old"
    assert "--overwrite" in result.output
    assert run("--limit", 1, "--overwrite").exit_code == 0
    assert old.read_text() != "old"


def test_command_explains_a_bad_peer(run):
    result = run("--peer", "theirs")
    assert result.exit_code == 2
    assert "NAME=FOLDER" in result.output
