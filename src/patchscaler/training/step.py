"""One optimiser step: on CUDA thousands of small kernels, replayed as two graphs instead of launched one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from patchscaler.data.dataset import TileSet
from patchscaler.training.checkpoint import TrainingState
from patchscaler.training.recipe import Recipe
from patchscaler.training.stage import Logs, Stage

_WARM_UP = 3


class OptimiserStep:
    """Draws a batch, learns from it on every process alike, and updates weights and their averages.

    What changes from step to step (seed, rates, decay, and what `Stage.prepare` sets) is kept in tensors, so that a
    captured step can be replayed.

    Args:
        stage: what learns.
        tiles: where batches come from.
        recipe: how.
        state: parameters, averages and optimizer.
        accelerator: the processes and the precision.
    """

    def __init__(
        self, stage: Stage, tiles: TileSet, recipe: Recipe, state: TrainingState, accelerator: Accelerator
    ) -> None:
        self.stage, self.tiles, self.recipe, self.state = stage, tiles, recipe, state
        self.accelerator = accelerator
        self.generator = torch.Generator(accelerator.device)
        self.decay = torch.zeros((), device=accelerator.device)
        self.averaged = [state.parameters[name] for name in state.averages]
        capture = recipe.graphs and accelerator.device.type == "cuda"
        self._learn = _Replayed(self._learn_from_batch, self.generator) if capture else self._learn_from_batch
        self._update = _Replayed(self._update_weights, self.generator) if capture else self._update_weights

    def __call__(self, progress: float) -> Logs:
        """Do step `stage.step` and return what it logs, which the next step may overwrite."""
        step = self.stage.step
        self.generator.manual_seed(self._seed(step))
        self.stage.prepare()
        self.decay.fill_(min(self.recipe.ema, (1 + step) / (10 + step)))
        for group in self.state.optimizer.param_groups:
            rate = self.recipe.rate(step, progress) * group["pace"]
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        logs = self._learn()
        if self.accelerator.num_processes > 1:
            average_gradients(self.state.parameters.values(), self.accelerator.num_processes)
        return logs | self._update()

    def _learn_from_batch(self) -> Logs:
        recipe = self.recipe
        self.state.optimizer.zero_grad(set_to_none=True)
        batch = self.tiles.sample(
            recipe.batch,
            recipe.crop,
            self.generator,
            texture_share=recipe.texture_share,
            shrink=recipe.shrink,
        )
        with self.accelerator.autocast():
            loss, logs = self.stage(batch, self.generator)
        self.accelerator.backward(loss)
        return {"loss": loss.detach()} | {name: value.detach() for name, value in logs.items()}

    def _update_weights(self) -> Logs:
        norms = {
            f"norm_{group['name']}": nn.utils.clip_grad_norm_(group["params"], self.recipe.clip)
            for group in self.state.optimizer.param_groups
        }
        self.state.optimizer.step()
        with torch.no_grad():
            averages = list(self.state.averages.values())
            ahead = torch._foreach_sub([value.detach() for value in self.averaged], averages)
            torch._foreach_mul_(ahead, 1 - self.decay)
            torch._foreach_add_(averages, ahead)
        return norms

    def _seed(self, step: int) -> int:
        return (self.recipe.seed * 1_000_003 + step) * 4096 + self.accelerator.process_index


def average_gradients(parameters: Iterable[nn.Parameter], processes: int) -> None:
    """Replace every gradient by its mean over all processes, in one exchange."""
    gradients = [value.grad for value in parameters if value.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= processes
    parts = flat.split([gradient.numel() for gradient in gradients])
    torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)])


class _Replayed:
    """A function of no arguments that always computes with the same tensors, captured as a CUDA graph.

    Its first calls run eagerly: compilers, plans and autograd settle. What it returns is overwritten by the next call.
    """

    def __init__(self, function: Callable[[], Logs], generator: torch.Generator) -> None:
        self.function, self.generator, self.calls = function, generator, 0
        self.stream = torch.cuda.Stream()

    def __call__(self) -> Logs:
        if self.calls < _WARM_UP:
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                self.result = self.function()
            torch.cuda.current_stream().wait_stream(self.stream)
        else:
            if self.calls == _WARM_UP:
                self.graph = torch.cuda.CUDAGraph()
                self.graph.register_generator_state(self.generator)
                with torch.cuda.graph(self.graph):
                    self.result = self.function()
            self.graph.replay()
        self.calls += 1
        return self.result
