"""Forward pass and gradient of a training step as one CUDA graph. Torch only.

A step is some three hundred small kernels. Launched one after the other from Python, they take longer to launch than to run;
a graph launches all of them at once. It reads and writes fixed memory, so a batch is copied to its inputs, and the gradient
is always in the same tensors. What several workers send each other, the optimiser's step and what depends on a step's
number stay outside; the scale of a loss in float16 is a tensor that the graph reads.

A graph is only used if it reproduces the step that it was captured from: otherwise, and where capturing fails, steps run
kernel by kernel, as they do on a CPU.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

#: Computes outputs from inputs, and adds the gradient to that of the network's parameters.
Step = Callable[[Sequence[Tensor]], tuple[Tensor, ...]]
#: Records a function without running it; returns what runs it again, with the same memory.
Capture = Callable[[Callable[[], tuple[Tensor, ...]]], Callable[[], tuple[Tensor, ...]]]
#: Steps before the capture, in which libraries choose algorithms and allocate their memory.
WARM_UP = 2
#: Largest relative difference (in the norm) of an output, or of the gradient, between a graph and its step.
TOLERANCE = 1e-3


def warn(line: str) -> None:
    """Issue a line as a warning."""
    warnings.warn(line, stacklevel=3)


class GraphMismatchError(RuntimeError):
    """A graph does not reproduce the step that it was captured from."""


def cuda_graph(work: Callable[[], tuple[Tensor, ...]]) -> Callable[[], tuple[Tensor, ...]]:
    """Capture the kernels of a function on the current device; the function that is returned launches them."""
    graph = torch.cuda.CUDAGraph()
    # Meanwhile, other threads go on reading batches into pinned memory.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        outputs = work()

    def replay() -> tuple[Tensor, ...]:
        graph.replay()
        return outputs

    return replay


class StepGraph:
    """A step of a network, captured with the shapes of its first inputs.

    Capturing leaves the network's buffers and the random state as they were, and no gradient. Random numbers are those of
    the step without a graph: a replay starts from the generator's current state, and moves it on.
    """

    def __init__(self, network: nn.Module, step: Step, inputs: Sequence[Tensor], *, capture: Capture = cuda_graph) -> None:
        self.inputs = [x.clone() for x in inputs]
        self._parameters = [p for p in network.parameters() if p.requires_grad]
        self._step = step
        device = self._parameters[0].device
        buffers = list(network.buffers())
        before = [buffer.clone() for buffer in buffers]

        def again(run: Callable[[], tuple[Tensor, ...]]) -> tuple[list[Tensor], list[Tensor | None]]:
            """Run a step from the same state as all others; return copies of its outputs, and its gradient."""
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                outputs = [x.clone() for x in run()]
            torch._foreach_copy_(buffers, before)
            return outputs, [p.grad for p in self._parameters]

        with _side_stream(device):
            for _ in range(WARM_UP):
                expected = again(self._run)
        self._replay = capture(self._run)
        self._gradients = [p.grad for p in self._parameters]
        self._earlier: list[Tensor] | None = None
        _check(again(self._replay), expected)
        self._clear()

    def fits(self, inputs: Sequence[Tensor]) -> bool:
        """Whether inputs have the shapes and types that were captured."""
        return [(x.shape, x.dtype) for x in inputs] == [(x.shape, x.dtype) for x in self.inputs]

    def __call__(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Run the step; outputs and gradients are overwritten by the next call."""
        torch._foreach_copy_(self.inputs, list(inputs))
        earlier = [p.grad for p in self._parameters if p.grad is not None]
        if earlier:  # of an earlier piece of the batch; it may be in the graph's own tensors
            if self._earlier is None:
                self._earlier = [torch.empty_like(gradient) for gradient in earlier]
            torch._foreach_copy_(self._earlier, earlier)
        outputs = self._replay()
        if earlier:
            assert self._earlier is not None
            torch._foreach_add_([gradient for gradient in self._gradients if gradient is not None], self._earlier)
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        return outputs

    def _run(self) -> tuple[Tensor, ...]:
        self._clear()  # so that the gradient is written, not added
        return self._step(self.inputs)

    def _clear(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None


@contextmanager
def _side_stream(device: torch.device) -> Iterator[None]:
    """Compute on another stream of a GPU, which begins after what was computed before, and is waited for."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    computing = torch.cuda.current_stream(device)
    stream.wait_stream(computing)
    with torch.cuda.stream(stream):
        yield
    computing.wait_stream(stream)


def _check(found: tuple[list[Tensor], list[Tensor | None]], expected: tuple[list[Tensor], list[Tensor | None]]) -> None:
    """Compare each output, and the gradient as a whole.

    Raises:
        GraphMismatchError: they differ.
    """
    gradients = [
        (one, other) for one, other in zip(found[1], expected[1], strict=True) if one is not None and other is not None
    ]
    if len(gradients) != sum(other is not None for other in expected[1]):
        raise GraphMismatchError("a parameter has no gradient")
    for pairs in (*([pair] for pair in zip(found[0], expected[0], strict=True)), gradients):
        difference = torch.stack([(one.double() - other.double()).norm() for one, other in pairs]).norm()
        size = torch.stack([other.double().norm() for _, other in pairs]).norm()
        if not bool(difference <= TOLERANCE * size):
            raise GraphMismatchError(f"it differs by {float(difference):.2g} of {float(size):.2g}")


def try_capture(
    network: nn.Module,
    step: Step,
    inputs: Sequence[Tensor],
    *,
    capture: Capture = cuda_graph,
    report: Callable[[str], None] = warn,
) -> StepGraph | None:
    """Capture a step; None, after a line to `report`, if that fails or the graph does not reproduce the step."""
    try:
        return StepGraph(network, step, inputs, capture=capture)
    except RuntimeError as error:  # whatever CUDA refuses; if the device has failed, the next step says so
        for parameter in network.parameters():
            parameter.grad = None
        report(f"training runs kernel by kernel, as its step cannot be used as a CUDA graph ({error})")
        return None
