"""Functions as CUDA graphs, and compiled functions that fall back to eager code."""

from collections.abc import Callable, Sequence
from typing import Generic, ParamSpec, TypeVar, cast

import torch

WARMUP = 3  # calls before a capture, which allocate, compile and choose kernels
P = ParamSpec("P")
R = TypeVar("R")
Note = Callable[[str], None]


def compiled(function: Callable[P, R], *, note: Note, backend: str = "inductor") -> Callable[P, R]:
    """Compile a function with PyTorch; after a failure, call the function without compilation.

    The compiler's own CUDA graphs are not used, because :class:`Captured` captures the whole step
    and graphs cannot be nested. Compilation happens in the warm-up, never in a capture.

    Parameters
    ----------
    function
        Function to compile.
    note
        Function that is called with the reason of a failure.
    backend
        Backend of :func:`torch.compile`.
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
        except Exception as error:  # of any kind: eager code gives the same numbers
            note(f"runs uncompiled: {type(error).__name__}: {_brief(error)}")
            current = function
            result = current(*arguments, **options)
        proven = True
        return result

    return call


class Captured(Generic[R]):
    """Function without arguments as one CUDA graph; each call computes the function once.

    On a GPU the first calls run the function directly on a side stream. Then it is captured once
    and replayed with one launch instead of hundreds; the result is always in the same tensors. On
    other devices, or after a failed capture, every call runs the function directly.

    Parameters
    ----------
    function
        Function that uses the same tensors at every call and does not wait for the device. It
        changes its state (weights of an optimiser, a step counter) once per call.
    device
        Device of the tensors.
    capture
        False to never capture.
    generators
        Random generators of the function; a replay continues from their present states.
    note
        Function that is called with the reason of a failed capture; without it, the error is
        raised.
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
        # The same stream for warm-up and capture, so that libraries have set up their state for it.
        self.stream = torch.cuda.Stream(device) if self.capture else None

    def __call__(self) -> R:
        """Compute the function once and return its result."""
        if self.capture and self.remaining:
            self.remaining -= 1
            return self._run_on_side_stream()
        if self.capture and self.graph is None:
            self._record()
        if self.graph is None:
            return self.function()
        self.graph.replay()
        return cast(R, self.result)

    def prepare(self) -> None:
        """Warm up and capture now, for a function that may be computed additional times."""
        while self.capture and self.graph is None:
            self()

    def _run_on_side_stream(self) -> R:
        """Run the function on a side stream, as required before a capture."""
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
        except RuntimeError as error:  # the capture has executed no kernel of the function
            if self.note is None:
                raise
            torch.cuda.synchronize(self.device)
            self.note(f"runs without a CUDA graph: {_brief(error)}")
            self.capture = False
            return
        self.graph = graph


def _brief(error: Exception) -> str:
    """Return the beginning of the text of an error in one line."""
    return " ".join(str(error).split())[:200]
