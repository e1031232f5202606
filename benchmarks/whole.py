"""Whole processes: one photograph cold, and a folder of them, beside what the device alone would take.

python benchmarks/whole.py [--model FOLDER] [--photos 100] [--size 512] [--device cuda] [--quality balanced] [--compile]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import describe, photograph, repeat, typical
from host import parts, save

from patchscaler import PatchScalerPipeline

_WARM_UP = 10
"""Photographs at the beginning of a folder run that the rate leaves out: shapes are compiled and captured there."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=None)
    parser.add_argument("--photos", type=int, default=100)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--quality", default="balanced")
    parser.add_argument(
        "--compile", action="store_true", help="both sides compiled; no single photograph is timed"
    )
    arguments = parser.parse_args()
    options = ["--device", arguments.device, "--quality", arguments.quality]
    options += ["--model", arguments.model] if arguments.model is not None else []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, target = folder / "in", folder / "out"
        source.mkdir()
        for number in range(arguments.photos):
            save(source / f"{number:03}.jpg", arguments.size, number)
        say(f"{os.cpu_count()} cores; --help takes {command('--help')[-1][0]:.2f} s")
        if arguments.compile:
            options.append("--compile")
        else:
            for text in ("one photograph", "again"):
                ends = command(
                    "upscale", str(source / "000.jpg"), "-o", str(folder / f"{text}.jpg"), *options
                )
                say(f"{text}: {ends[-1][0]:.2f} s")
        before = processor_time()
        ends = command("upscale", str(source), "-o", str(target), "--json", *options)
        say(folder_report(ends, processor_time() - before))
        for row in parts(folder, arguments.size, "jpg", runs=5)[::3]:
            say(
                f"  {row['part']}: {row['ms']:.1f} ms, {row['ms of all threads']:.1f} of processor time, alone here"
            )
    begin = time.perf_counter()
    device_only = alone(arguments)
    rate = rate_of(ends)
    say(
        f"the device alone: {device_only * 1000:.1f} ms a photograph (found in {time.perf_counter() - begin:.0f} s)\n"
        f"photographs a second once started: {rate:.1f} by the command, {1 / device_only:.1f} by the device alone:"
        f" {rate * device_only:.0%} on {os.cpu_count()} cores"
    )


Ends = list[tuple[float, dict[str, Any]]]
"""Seconds from the start of a process to each JSON object that it printed, and to its end."""


def folder_report(ends: Ends, processor: float) -> str:
    """What a folder run took, in a few lines."""
    photos, times, records = len(ends) - 1, [end for end, _ in ends], [record for _, record in ends[:-1]]
    starts = [sum(record["start_up"].values()) for record in records]
    stages = {
        name: sum(record["timings"][name] for record in records[_WARM_UP:]) / max(1, photos - _WARM_UP)
        for name in records[0]["timings"]
    }
    return (
        f"{photos} photographs: {times[-1]:.2f} s, the first after {times[0]:.2f} s, number {min(_WARM_UP, photos)}"
        f" after {times[min(_WARM_UP, photos) - 1]:.2f} s, the last after {times[-2]:.2f} s\n"
        f"  compiling and capturing: {sum(starts[:_WARM_UP]):.2f} s of thread time in the first {_WARM_UP},"
        f" {sum(starts[_WARM_UP:]):.2f} s after\n"
        f"  ms of each stage later, with another photograph on the same device: "
        + ", ".join(f"{name} {seconds * 1000:.1f}" for name, seconds in stages.items())
        + f"\n  processor time of the process: {processor:.1f} s, {processor / photos * 1000:.0f} ms a photograph"
        " with all that comes before"
    )


def rate_of(ends: Ends) -> float:
    """Photographs a second after the warm-up, from completion to completion: the process's start and end apart."""
    times = [end for end, _ in ends[:-1]]
    first = min(_WARM_UP, len(times) // 2)
    return (len(times) - first) / (times[-1] - times[first - 1])


def alone(arguments: argparse.Namespace) -> float:
    """Seconds of one photograph, uint8 to uint8 on the device, mean over those of the folder."""
    pipeline = PatchScalerPipeline.from_pretrained(
        arguments.model, device=arguments.device, compile=arguments.compile
    )
    device, dtype = pipeline.device, pipeline.dtype
    say(f"{describe(device, dtype)} {pipeline.fingerprint}")
    photos = [photograph(arguments.size, number).to(device) for number in range(5)]

    def call() -> None:
        for photo in photos:
            image = pipeline(photo.to(dtype) / 255, plan=arguments.quality).image
            (image * 255).round().to(torch.uint8)

    for _ in range(3 if device.type == "cuda" else 0):
        call()
    return typical(repeat(call, device, 10), device) / len(photos)


def command(*words: str) -> Ends:
    """Run a `patchscaler` process; CalledProcessError if it fails."""
    begin, ends = time.perf_counter(), []
    with subprocess.Popen(
        [sys.executable, "-m", "patchscaler", *words], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                ends.append((time.perf_counter() - begin, json.loads(line)))
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, words)
    return [*ends, (time.perf_counter() - begin, {})]


def processor_time() -> float:
    """Seconds of processor time of the processes that this one started and that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def say(text: str) -> None:
    """Print at once: a run that is cut short has told what it knows."""
    print(text, flush=True)


if __name__ == "__main__":
    main()
