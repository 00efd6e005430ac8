"""A function as one CUDA graph, and compiled functions that may fail without harm."""

from collections.abc import Callable, Sequence
from typing import Generic, ParamSpec, TypeVar, cast

import torch

WARMUP = 3  # steps before a capture: they allocate, compile and choose kernels
P = ParamSpec("P")
R = TypeVar("R")
Note = Callable[[str], None]


def compiled(function: Callable[P, R], *, note: Note, backend: str = "inductor") -> Callable[P, R]:
    """The function compiled by torch, or as it is from the first failure on.

    The compiler's own CUDA graphs stay off: :class:`Captured` captures the whole step, and one
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


class Captured(Generic[R]):
    """A function without arguments that becomes one CUDA graph; each call computes it once.

    On a GPU the first calls run the function as it is, on a side stream; then it is captured once
    and replayed: one launch instead of hundreds, after which its result stands where it stood
    before. Elsewhere, or where the capture fails, every call runs the function as it is.

    Parameters
    ----------
    function
        Reads and writes the same tensors at every call and does not wait for the device. What it
        does to them (the step of an optimiser, a step counter) it does once per call.
    capture
        False never captures.
    generators
        Sources of random draws in the function: a replay draws on from where they stand.
    note
        Told why a capture failed; without it, the error is raised.
    """

    def __init__(
        self,
        function: Callable[[], R],
        device: torch.device,
        *,
        capture: bool = True,
        generators: Sequence[torch.Generator] = (),
        note: Note | None = None,
    ) -> None:
        self.function, self.device, self.generators = function, device, generators
        self.note = note
        self.graph: torch.cuda.CUDAGraph | None = None
        self.result: R | None = None
        self.remaining = WARMUP
        self.capture = capture and device.type == "cuda"
        # one stream for warm-up and capture: what libraries set up per stream is there in time
        self.stream = torch.cuda.Stream(device) if self.capture else None

    def __call__(self) -> R:
        """Compute the function once."""
        if self.capture and self.remaining:
            self.remaining -= 1
            return self._aside()
        if self.capture and self.graph is None:
            self._record()
        if self.graph is None:
            return self.function()
        self.graph.replay()
        return cast(R, self.result)

    def prepare(self) -> None:
        """Warm up and capture now, for a function that may be computed more often than asked."""
        while self.capture and self.graph is None:
            self()

    def _aside(self) -> R:
        """Run the function on a side stream: what capture needs to have happened there before."""
        assert self.stream is not None
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            result = self.function()
        torch.cuda.current_stream(self.device).wait_stream(self.stream)
        return result

    def _record(self) -> None:
        graph = torch.cuda.CUDAGraph()
        for generator in self.generators:
            graph.register_generator_state(generator)
        try:
            with torch.cuda.graph(graph, stream=self.stream):
                self.result = self.function()
        except RuntimeError as error:  # nothing of the function has run yet
            if self.note is None:
                raise
            torch.cuda.synchronize(self.device)
            self.note(f"runs without a CUDA graph: {_brief(error)}")
            self.capture = False
            return
        self.graph = graph


def _brief(error: Exception) -> str:
    """The beginning of an error's text on one line."""
    return " ".join(str(error).split())[:200]
