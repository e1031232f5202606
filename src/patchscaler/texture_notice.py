"""What a texture memory must say of the pictures it holds: a NOTICE by licence and source."""

from __future__ import annotations

from collections import Counter

from patchscaler.texture_memory import ReferenceTextureMemory

LICENCES = {
    "CC0-1.0": ("CC0 1.0 Universal", "https://creativecommons.org/publicdomain/zero/1.0/"),
    "public domain": ("Public domain", ""),
    "MIT": ("MIT License", "https://opensource.org/license/mit"),
    "CC-BY-3.0": (
        "Creative Commons Attribution 3.0 Unported",
        "https://creativecommons.org/licenses/by/3.0/",
    ),
    "CC-BY-4.0": (
        "Creative Commons Attribution 4.0 International",
        "https://creativecommons.org/licenses/by/4.0/",
    ),
    "CC-BY-SA-3.0": (
        "Creative Commons Attribution-ShareAlike 3.0 Unported",
        "https://creativecommons.org/licenses/by-sa/3.0/",
    ),
    "CC-BY-SA-4.0": (
        "Creative Commons Attribution-ShareAlike 4.0 International",
        "https://creativecommons.org/licenses/by-sa/4.0/",
    ),
}
"""Names and addresses of the licences under which the bundled memory may hold pictures, by identifier."""


def notice(memory: ReferenceTextureMemory) -> str:
    """Every source of the memory, under its licence, with the number of patches it gave."""
    counts = Counter((origin.licence, origin.source) for origin in memory.origins)
    lines: list[str] = []
    for licence in sorted({licence for licence, _ in counts}):
        title = ", ".join(part for part in LICENCES.get(licence, (licence,)) if part)
        lines += [title, ""]
        lines += [
            f"  {source}  ({count})" for (own, source), count in sorted(counts.items()) if own == licence
        ]
        lines.append("")
    return "\n".join(lines)
