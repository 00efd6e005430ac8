"""A training step as one CUDA graph, and compiled functions that may fail without harm."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

WARMUP = 3  # steps before a capture: they allocate, compile and choose kernels
P = ParamSpec("P")
R = TypeVar("R")
Note = Callable[[str], None]


def compiled(function: Callable[P, R], *, note: Note, backend: str = "inductor") -> Callable[P, R]:
    """The function compiled by torch, or as it is from the first failure on.

    The compiler's own CUDA graphs stay off: :class:`CapturedStep` captures the whole step, and one
    graph inside another is not possible. Compilation happens in its warm-up, never in a capture.
    """
    fast = torch.compile(function, dynamic=False, backend=backend)
    current: Callable[P, R] = fast
    proven = False

    def call(*arguments: P.args, **options: P.kwargs) -> R:
        nonlocal current, proven
        if proven:
            return current(*arguments, **options)
        try:
            result = current(*arguments, **options)
        except Exception as error:  # a compiler fails in any way it likes; eager code is the same
            note(f"runs uncompiled: {type(error).__name__}: {_brief(error)}")
            current = function
            result = current(*arguments, **options)
        proven = True
        return result

    return call


class CapturedStep:
    """A step without arguments that reads and writes the same tensors at every call.

    On a GPU the first calls run as they are, on a side stream; then the step (forward, backward,
    clipping, optimiser, and the step counter that it advances itself) is captured once and
    replayed: one launch per step instead of hundreds. Elsewhere, or where the capture fails, every
    call runs the step as it is. Either way one call is one step.

    Parameters
    ----------
    step
        Must not synchronise with the host, and must find its inputs in tensors that stay where
        they are.
    capture
        False never captures.
    """

    def __init__(
        self,
        step: Callable[[], None],
        device: torch.device,
        *,
        capture: bool = True,
        note: Note = lambda text: None,
    ) -> None:
        self.step, self.device, self.note = step, device, note
        self.graph: torch.cuda.CUDAGraph | None = None
        self.remaining = WARMUP
        self.capture = capture and device.type == "cuda"
        # one stream for warm-up and capture: what libraries set up per stream is there in time
        self.stream = torch.cuda.Stream(device) if self.capture else None

    def __call__(self) -> None:
        """Take one step."""
        if not self.capture:
            self.step()
        elif self.remaining:
            self.remaining -= 1
            self._aside()
        else:
            if self.graph is None:
                self._record()
            self.graph.replay() if self.graph else self.step()

    def _aside(self) -> None:
        """Run the step on a side stream: what capture needs to have happened there before."""
        assert self.stream is not None
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            self.step()
        torch.cuda.current_stream(self.device).wait_stream(self.stream)

    def _record(self) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self.stream):
                self.step()
        except RuntimeError as error:  # nothing of the step has run yet
            torch.cuda.synchronize(self.device)
            self.note(f"runs without a CUDA graph: {_brief(error)}")
            self.capture = False
            return
        self.graph = graph


def _brief(error: Exception) -> str:
    """The beginning of an error's text on one line."""
    return " ".join(str(error).split())[:200]
