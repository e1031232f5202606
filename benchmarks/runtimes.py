"""The convolutional parts of the pipeline on a CPU: torch as it is, torch.compile, ONNX Runtime and OpenVINO.

OMP_NUM_THREADS=2 python benchmarks/runtimes.py [--size 128] [--threads 2] [--runs 5]
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module, metadata, util

import torch
from common import describe, photograph, seconds_of
from torch import Tensor, nn

from patchscaler import PatchScalerPipeline
from patchscaler.models.autoencoder import upsample

Inputs = tuple[Tensor, ...]
Call = Callable[[], Sequence[Tensor]]
Prepare = Callable[["Part", Inputs, int], Call]


class Part(nn.Module):
    """A function of a network as a module, which is what the exporter takes."""

    def __init__(self, network: nn.Module, function: Callable[..., Inputs]) -> None:
        super().__init__()
        self.network, self.forward = network, function
        self.eval()


@torch.no_grad()
def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=None)
    parser.add_argument("--size", type=int, default=128, help="side of the LR image")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.compiler.config.force_disable_caches = True  # a later run would find what this one compiles
    pipeline = PatchScalerPipeline.from_pretrained(arguments.model, device="cpu", dtype=torch.float32)
    ways: dict[str, Prepare] = {}
    head = f"{describe(pipeline.device, pipeline.dtype)}; weights {pipeline.fingerprint}; {arguments.size} pixels"
    for name, packages, prepare in RUNTIMES:
        if missing := [package for package in packages if not util.find_spec(package)]:
            print(f"{name} is left out: pip install {' '.join(missing)}")
        else:
            ways[name] = prepare
            head += "".join(f"; {package} {metadata.version(package)}" for package in packages[:1])
    rows = {name: defaultdict[str, float](float) for name in ways}
    for part, (module, inputs) in parts(pipeline, arguments.size).items():
        expected, calls = module(*inputs), dict[str, Call]()
        differs, unit = ("image, 1/255", 1 / 255) if part == "decode" else ("latents", 1)
        for name, row in rows.items():
            begin = time.perf_counter()
            calls[name] = ways[name](module, inputs, arguments.threads)
            results = calls[name]()
            row["prepare, s"] += time.perf_counter() - begin
            errors = [float((a - b).abs().max()) / unit for a, b in zip(results, expected, strict=True)]
            row[differs] = max(row[differs], *errors)
        for _ in range(arguments.runs):
            for name, call in calls.items():
                time.sleep(0.1)  # or the idle threads of the runtime before, which spin, take a core
                call()
                milliseconds = 1000 * seconds_of(call, pipeline.device)
                rows[name][part] = min(rows[name].get(part, milliseconds), milliseconds)
    columns = ["encode", "restore", "decode", "sum", "prepare, s", "latents", "image, 1/255"]
    print(f"\n{head}\n\n| runtime | {' | '.join(columns)} |\n{'|---' * (len(columns) + 1)}|")
    for name, row in rows.items():
        row["sum"] = row["encode"] + row["restore"] + row["decode"]
        print(f"| {name} | {' | '.join(f'{row[column]:.3g}' for column in columns)} |")


def parts(pipeline: PatchScalerPipeline, size: int) -> dict[str, tuple[Part, Inputs]]:
    """Encoder, restoration module and decoder, each with its inputs for one photograph."""
    autoencoder, restoration = pipeline.autoencoder, pipeline.restoration
    lr = (photograph(size) / 255)[None].contiguous(memory_format=torch.channels_last)
    image = upsample(lr, pipeline.scale)
    latent = autoencoder.encode(image)
    restored = restoration(latent, lr).latent
    return {
        "encode": (Part(autoencoder, lambda image: (autoencoder.encode(image),)), (image,)),
        "restore": (Part(restoration, lambda latent, lr: restoration(latent, lr)[:2]), (latent, lr)),
        "decode": (Part(autoencoder, lambda latent, lr: (autoencoder.decode(latent, lr),)), (restored, lr)),
    }


def onnx_runtime(part: Part, inputs: Inputs, threads: int) -> Call:
    """A session of ONNX Runtime's CPU provider."""
    library = import_module("onnxruntime")
    options = library.SessionOptions()
    options.intra_op_num_threads = threads
    session = library.InferenceSession(to_onnx(part, inputs), options, providers=["CPUExecutionProvider"])
    pairs = zip(session.get_inputs(), inputs, strict=True)
    named = {node.name: x.contiguous().numpy() for node, x in pairs}
    return lambda: [torch.from_numpy(array) for array in session.run(None, named)]


def openvino(part: Part, inputs: Inputs, threads: int) -> Call:
    """A model of OpenVINO, by way of ONNX."""
    core = import_module("openvino").Core()
    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    model = core.compile_model(core.read_model(to_onnx(part, inputs)), "CPU", options)
    arrays = [x.contiguous().numpy() for x in inputs]
    return lambda: [torch.from_numpy(array) for array in model(arrays).values()]


def to_onnx(part: Part, inputs: Inputs) -> bytes:
    """The part for inputs of these shapes."""
    program = torch.onnx.export(part, inputs, dynamo=True, verbose=False)
    assert program is not None
    return program.model_proto.SerializeToString()


RUNTIMES: list[tuple[str, list[str], Prepare]] = [
    ("torch, as it is", [], lambda part, inputs, threads: partial(part, *inputs)),
    ("torch.compile", [], lambda part, inputs, threads: partial(torch.compile(part, dynamic=False), *inputs)),
    ("ONNX Runtime", ["onnxruntime", "onnx", "onnxscript"], onnx_runtime),
    ("OpenVINO", ["openvino", "onnx", "onnxscript"], openvino),
]


if __name__ == "__main__":
    main()
