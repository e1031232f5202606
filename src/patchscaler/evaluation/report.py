"""An evaluation as Markdown, JSON, and one HTML file with the pictures inside."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from html import escape
from typing import Any

from PIL import Image

from patchscaler.evaluation.contest import FLAT, SIZE, Contest, Crop
from patchscaler.evaluation.evaluate import BICUBIC, OURS, RESTORATION, Evaluation, Picture
from patchscaler.evaluation.metrics import Array

_COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("psnr_y", "PSNR-Y, dB", ".2f"),
    ("ssim_y", "SSIM-Y", ".4f"),
    ("dfd", "DFD", ".4f"),
    ("detail_energy", "detail energy, dB", ".1f"),
    ("colour_shift", "colour from truth, ΔE", ".2f"),
    ("colour_drift", "from input, ΔE", ".2f"),
    ("seam_power", "seam power", ".3f"),
    ("steps", "steps", ".2f"),
    ("shares", "groups", ".0%"),
    ("seconds", "seconds", ".3f"),
)
_NOTES = (
    "PSNR and SSIM: BT.601 luma. DFD: deep feature distance, lower is better; it can prefer a blur to"
    " plausible texture, so read it beside detail energy (0 is the truth's, below it blur, above it noise)"
    " and the pictures. Colour: mean CIEDE2000 of 16-pixel blocks, from the truth and from the input."
    " Seam power: median, relative to restoration only; 1 is no more grid than that."
    " Groups: shares of the patches, simplest first."
)


def to_json(evaluation: Evaluation) -> str:
    """Every figure of every image."""
    return json.dumps(evaluation.to_dict(), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def to_markdown(evaluation: Evaluation) -> str:
    """The tables and facts, without pictures."""
    tables = [_markdown_table(table) for table in (summary_table(evaluation), comparison_table(evaluation))]
    title = f"# Evaluation on {len(evaluation.images)} images"
    heading = f"## {OURS} minus the others, mean and 95 % interval"
    facts = "\n".join(f"- {fact}" for fact in _facts(evaluation))
    return "\n\n".join([title, tables[0], _NOTES, heading, tables[1], "## Model", facts]) + "\n"


def to_html(evaluation: Evaluation, count: int = 8) -> str:
    """One file that needs nothing from outside: tables, facts and crops of `count` images."""
    gains = {
        stem: before - after
        for stem, before, after in zip(
            evaluation.images,
            evaluation.row(RESTORATION).values["dfd"],
            evaluation.row(OURS).values["dfd"],
            strict=True,
        )
    }
    aside = [name for name in evaluation.settings["plans"] if name != OURS]
    figures = [
        _figure(stem, gains[stem], evaluation.pictures[stem], aside) for stem in evaluation.pick(count)
    ]
    return _PAGE.format(
        title=f"Evaluation on {len(evaluation.images)} images",
        subtitle=escape(f"PatchScaler {evaluation.settings['model']}"),
        summary=_html_table(summary_table(evaluation)),
        notes=escape(_NOTES),
        heading=escape(f"{OURS} minus the others, mean and 95 % interval"),
        comparison=_html_table(comparison_table(evaluation)),
        facts="".join(f"<li>{escape(fact)}</li>" for fact in _facts(evaluation)),
        contests="".join(map(_contest, evaluation.contests)),
        figures="".join(figures),
    )


def summary_table(evaluation: Evaluation) -> list[list[str]]:
    """Header and one line per row of the evaluation."""
    lines = [["", *(title for _, title, _ in _COLUMNS)]]
    for row in evaluation.rows:
        figures = row.summary()
        lines.append([row.name, *(_format(figures[key], form) for key, _, form in _COLUMNS)])
    return lines


def comparison_table(evaluation: Evaluation) -> list[list[str]]:
    """Header and one line per row that `balanced` is compared with."""
    lines: dict[str, list[str]] = {}
    for item in evaluation.comparisons:
        mean, low, high = item.interval
        cell = f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]"
        lines.setdefault(item.other, [item.other]).append(cell)
    return [["against", "DFD", "PSNR-Y, dB"], *lines.values()]


def _facts(evaluation: Evaluation) -> list[str]:
    settings, correlation = evaluation.settings, evaluation.correlation
    rebuilt = ", ".join(f"{name} {value:.2f} dB" for name, value in evaluation.reconstruction.items())
    shift = ", ".join(f"{name} {value:.3f}" for name, value in evaluation.grid_shift.items())
    return [
        f"weights {settings['model']} on {settings['device']} in {settings['dtype']},"
        f" seed {settings['seed']}, border {settings['border']}",
        f"Spearman correlation with the squared latent error over {correlation['patches']} patches:"
        f" confidence {correlation['confidence']:.3f}, LR variance {correlation['lr_variance']:.3f}",
        f"autoencoder alone: {rebuilt}",
        f"mean difference when the patch grid moves by half a patch, in levels of 255: {shift}",
        *(_tally(contest) for contest in evaluation.contests),
    ]


def _tally(contest: Contest) -> str:
    won, lost = (sum(getattr(crop, name) for crop in contest.crops) for name in ("won", "lost"))
    return (
        f"of {len(contest.crops)} crops, {OURS} is nearer to the truth than {contest.peer} by DFD and PSNR-Y"
        f" in {won} that are not flat; {contest.peer} is nearer by DFD in {lost}"
    )


def _format(value: Any, form: str) -> str:
    if value is None:
        return "n/a"
    if isinstance(value, list):
        return " / ".join(format(item, form) for item in value)
    return format(value, form)


def _markdown_table(lines: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    rule = "|---|" + "---:|" * (len(lines[0]) - 1)
    return "\n".join([line(lines[0]), rule, *map(line, lines[1:])])


def _html_table(lines: Sequence[Sequence[str]]) -> str:
    def cells(tag: str, texts: Sequence[str]) -> str:
        return "".join(f"<{tag}>{escape(text)}</{tag}>" for text in texts)

    body = "".join(
        f'<tr{_ours_class(line[0])}><th scope="row">{escape(line[0])}</th>{cells("td", line[1:])}</tr>'
        for line in lines[1:]
    )
    head = f"<thead><tr>{cells('th', lines[0])}</tr></thead>"
    return f'<div class="scroll"><table>{head}<tbody>{body}</tbody></table></div>'


def _ours_class(name: str) -> str:
    return ' class="ours"' if name == OURS else ""


def _figure(stem: str, gain: float, picture: Picture, aside: Sequence[str]) -> str:
    """LR, the other methods, ours, the truth and the difficulty map; after them the rows `aside`."""
    side = max(next(iter(picture.crops.values())).shape[:2])
    first = {name: crop for name, crop in picture.crops.items() if name not in aside}
    last = {name: crop for name, crop in picture.crops.items() if name in aside}
    shown = {"LR": picture.lr, **first, "difficulty": picture.difficulty, **last}
    tiles = "".join(_tile(stem, name, image, side) for name, image in shown.items())
    heading = f"{escape(stem)} <small>DFD {-gain:+.4f} by sampling</small>"
    return f'<section><h3>{heading}</h3><div class="tiles">{tiles}</div></section>'


def _contest(contest: Contest) -> str:
    """Two sections: the crops that ours wins by most, and those that it loses by most."""
    rule = (
        f"Chosen by measure, not by hand. Crops of {SIZE} pixels cover every image, and each is judged alone;"
        f" {_tally(contest)}. Here are those with the largest difference in DFD, one of an image; to count for"
        f" {OURS}, a crop must be nearer by PSNR-Y too, and not flat (luma deviation of {FLAT:.0f} levels)."
    )
    sections = (
        f"<h2>Where {OURS} is nearer to the truth than {escape(contest.peer)}</h2>",
        f'<p class="soft">{escape(rule)}</p>',
        *(_contest_row(contest, crop) for crop in contest.wins()),
        f"<h2>Where {escape(contest.peer)} is nearer</h2>",
        *(_contest_row(contest, crop) for crop in contest.losses()),
    )
    return "".join(sections)


def _contest_row(contest: Contest, crop: Crop) -> str:
    views = contest.views[crop]
    ours, theirs = (
        f"DFD {dfd:.3f}, PSNR-Y {psnr:.2f} dB" for dfd, psnr in zip(crop.dfd, crop.psnr_y, strict=True)
    )
    shown = [
        ("LR", views.lr, ""),
        (BICUBIC, views.bicubic, ""),
        (contest.peer, views.peer, theirs),
        (OURS, views.ours, ours),
        ("truth", views.truth, ""),
        ("difficulty", views.difficulty, ""),
    ]
    place = f"{crop.stem} at {crop.left}, {crop.top}"
    tiles = "".join(_tile(place, name, image, crop.size, note) for name, image, note in shown)
    heading = f"{escape(place)} <small>DFD of {OURS} {-crop.gain:+.3f}</small>"
    return f'<section><h3>{heading}</h3><div class="tiles six">{tiles}</div></section>'


def _tile(what: str, name: str, image: Array, side: int, note: str = "") -> str:
    kind = "map" if name == "difficulty" else "crop"
    caption = escape(name) + (f"<br><small>{escape(note)}</small>" if note else "")
    return (
        f'<figure><img src="{_data_uri(image)}" alt="{escape(f"{what}: {name}")}" class="{kind}"'
        f' loading="lazy" width="{side}" height="{side}">'
        f"<figcaption{_ours_class(name)}>{caption}</figcaption></figure>"
    )


def _data_uri(image: Array) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "WEBP", lossless=True, method=2)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark;
  --ink: #1c1c1e; --soft: #65656b; --paper: #fff; --line: #dededf; --mark: #eef4ff; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #ececee; --soft: #9a9aa2; --paper: #141416; --line: #333338; --mark: #1b2740; }}
}}
body {{ font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 76rem; margin: 0 auto; padding: 2rem 1rem 4rem; }}
h1 {{ margin: 0; }}
h2 {{ margin: 2.5rem 0 .75rem; }}
h3 {{ margin: 2rem 0 .5rem; font-size: 1rem; overflow-wrap: anywhere; }}
small, .soft, figcaption {{ color: var(--soft); font-weight: 400; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .4rem .8rem; border-bottom: 1px solid var(--line);
  text-align: right; white-space: nowrap; }}
th:first-child {{ text-align: left; }}
tr.ours {{ background: var(--mark); }}
figcaption.ours {{ color: var(--ink); font-weight: 600; }}
.tiles {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); gap: .75rem; }}
.six {{ grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); }}
figure {{ margin: 0; font-size: .8125rem; }}
img {{ width: 100%; height: auto; aspect-ratio: 1; object-fit: contain; }}
img.crop {{ image-rendering: pixelated; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p class="soft">{subtitle}</p>
{summary}
<p class="soft">{notes}</p>
<h2>{heading}</h2>
{comparison}
<h2>Model</h2>
<ul>{facts}</ul>
{contests}
<h2>Pictures</h2>
<p class="soft">Crops around the place where the restoration was least sure: first the images
that sampling helps most, then those it hurts most, then others at random.
The difficulty map shows the whole image.</p>
{figures}
</body>
</html>
"""
