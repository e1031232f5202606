"""How functions of tensors are run: as they are, compiled, or as CUDA graphs once their shapes repeat."""

from __future__ import annotations

import re
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from patchscaler.errors import DeviceError
from patchscaler.runtime.memory import is_out_of_memory, release

Function = Callable[..., tuple[Tensor, ...]]
Capture = Callable[[Function, Sequence[Tensor]], Function]

_CAPTURING = threading.Lock()  # a capture in one thread forbids waiting for the device in the others
_MOST = 32


class Runner:
    """Runs the parts of a pipeline on one device; threads may share it.

    Launching a network kernel by kernel takes the host longer than small inputs take the GPU. A function that is
    called a second time with the same shapes is therefore captured as a CUDA graph, which later calls replay. Where
    that is impossible, or there is no memory for it, the function runs as it is.

    Args:
        device: where the tensors are; only CUDA has graphs.
        compile: compile functions with torch.compile at their first call, and again for each new shape. It takes
            up to a minute; later processes find most of it in torch's cache on disk.
        capture: makes a graph; CUDA's own by default.
        most: functions and shapes that are remembered; the least recently used is forgotten first.

    Attributes:
        seconds: spent on `compile` and `capture` so far.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        compile: bool = False,
        capture: Capture | None = None,
        most: int = _MOST,
    ) -> None:
        self.compile, self.most = compile, most
        self.seconds = {"compile": 0.0, "capture": 0.0}
        self._capture = capture
        self._lock = threading.Lock()
        self._compiled: dict[Hashable, Function] = {}
        self._graphs: OrderedDict[Hashable, Function | None] = OrderedDict()
        self.reset(device)

    def reset(self, device: torch.device) -> None:
        """Forget everything: the networks moved to a device, or changed."""
        self.clear()
        self._compiled.clear()
        if self._capture is None or isinstance(self._capture, CudaCapture):
            self._capture = CudaCapture(device) if device.type == "cuda" else None

    def clear(self) -> None:
        """Forget all graphs, which gives their memory back."""
        with self._lock:
            self._graphs.clear()

    def __call__(
        self, name: Hashable, function: Function, *inputs: Tensor, repeats: bool = True
    ) -> tuple[Tensor, ...]:
        """`function(*inputs)`.

        Args:
            name: what the function is known by; functions of one name compute the same.
            function: of tensors alone, with no other effect and no look at their values.
            inputs: its tensors.
            repeats: whether a graph is worth its memory should the shapes come again.
        """
        key = (name, *((x.shape, x.dtype) for x in inputs))
        with self._lock:
            known = key in self._graphs
            if self.compile:
                if name not in self._compiled:
                    self._compiled[name] = torch.compile(function, dynamic=False)
                function = self._compiled[name]
            graph = self._graph(key, function, inputs, known and repeats)
            if graph is not None:
                return graph(*inputs)
        begin = time.perf_counter()
        outputs = self._run(function, inputs)
        if self.compile and not known:
            self.seconds["compile"] += time.perf_counter() - begin
        return outputs

    def _graph(
        self, key: Hashable, function: Function, inputs: Sequence[Tensor], wanted: bool
    ) -> Function | None:
        """The graph of a function, captured now if it is not yet and is wanted."""
        if key not in self._graphs:
            self._graphs[key] = None
            if len(self._graphs) > self.most:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(key)
        if not wanted or self._capture is None or self._graphs[key] is not None:
            return None if self._graphs[key] is _never else self._graphs[key]
        begin = time.perf_counter()
        try:
            self._graphs[key] = self._capture(function, inputs)
        except RuntimeError:
            self._graphs[key] = _never
        self.seconds["capture"] += time.perf_counter() - begin
        if self._graphs[key] is _never:
            release()
            return None
        return self._graphs[key]

    def _run(self, function: Function, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Call a function, if need be after giving back the memory of the graphs."""
        try:
            return function(*inputs)
        except RuntimeError as error:
            if self.compile and type(error).__module__.startswith("torch._"):
                raise DeviceError(
                    f"torch.compile does not work here, go without it: {_cause(error)}"
                ) from error
            if not is_out_of_memory(error) or not any(self._graphs.values()):
                raise
        self.clear()
        release()
        return function(*inputs)


def _cause(error: Exception) -> str:
    """The line that says what went wrong: compilers put the traceback of their own processes into their message."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    causes = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b.*: \S", line)]
    return (causes or lines)[-1 if causes else 0].strip()


def run_plainly(name: Hashable, function: Function, *inputs: Tensor) -> tuple[Tensor, ...]:
    """What a `Runner` gives, with nothing remembered."""
    return function(*inputs)


def _never(*inputs: Tensor) -> tuple[Tensor, ...]:
    raise AssertionError("stands for a function that cannot be captured")


class CudaCapture:
    """Captures functions on one device.

    All graphs take their intermediate tensors from one pool. That is safe because they run one after the other and
    their results are copied out at once.
    """

    def __init__(self, device: torch.device) -> None:
        with torch.cuda.device(device):
            self.device = torch.cuda.current_device()
            self.stream, self.done = torch.cuda.Stream(), torch.cuda.Event()
        self.graphs: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()

    def __call__(self, function: Function, inputs: Sequence[Tensor]) -> Function:
        """A function that replays `function` on inputs of these shapes; RuntimeError if it cannot be captured."""
        with torch.cuda.device(self.device), _CAPTURING:
            held = tuple(x.clone() for x in inputs)
            torch.cuda.empty_cache()
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                function(*held)
            self.stream.synchronize()
            torch.cuda.empty_cache()
            if not self.graphs:  # a pool ends with the last of its graphs
                self.pool = torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            self.graphs.add(graph)
            with torch.cuda.graph(
                graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"
            ):
                results = function(*held)

        def replay(*inputs: Tensor) -> tuple[Tensor, ...]:
            with torch.cuda.device(self.device):
                torch.cuda.current_stream().wait_event(self.done)
                for mine, theirs in zip(held, inputs, strict=True):
                    mine.copy_(theirs)
                graph.replay()
                copies = tuple(result.clone() for result in results)
                self.done.record()
            return copies

        return replay
