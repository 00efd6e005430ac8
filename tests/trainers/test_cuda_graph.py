"""One capture for every CUDA graph; without a GPU its order of events is tested on a fake."""

from collections.abc import Callable

import pytest
import torch

from shapelaw.trainers.cuda_graph import WARMUP, Captured, compiled

CPU = torch.device("cpu")


def test_function_that_cannot_be_compiled_runs_as_it_is() -> None:
    def broken(module: object, inputs: object) -> Callable[..., object]:
        raise RuntimeError("no compiler here\nand a long trace")

    notes: list[str] = []
    doubled = compiled(lambda x: 2 * x, note=notes.append, backend=broken)  # type: ignore[arg-type]
    for _ in range(2):
        assert doubled(torch.ones(2)).tolist() == [2, 2]
    assert len(notes) == 1
    assert notes[0].startswith("runs uncompiled: ")
    assert "no compiler here" in notes[0]


def test_error_of_a_compiled_function_itself_is_raised() -> None:
    def wrong(x: torch.Tensor) -> torch.Tensor:
        return x @ torch.ones(3)

    with pytest.raises(RuntimeError):
        compiled(wrong, note=lambda text: None, backend="eager")(torch.ones(2))


def test_function_without_a_gpu_is_computed_once_per_call() -> None:
    calls: list[int] = []
    captured = Captured(lambda: calls.append(1) or len(calls), CPU)
    captured.prepare()
    assert [captured() for _ in range(5)] == [1, 2, 3, 4, 5]
    assert captured.graph is None


class FakeGraph:
    """Stands for the device in the order of events: what is recorded runs at replay only."""

    def __init__(self) -> None:
        self.replays = 0
        self.generators: list[torch.Generator] = []

    def register_generator_state(self, generator: torch.Generator) -> None:
        self.generators.append(generator)

    def replay(self) -> None:
        self.replays += 1


class Counter:
    """A function that counts its calls, captured as on a GPU with a fake graph."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, *, works: bool, note: Callable[[str], None] | None
    ) -> None:
        self.computed = 0
        self.recording = False
        self.draws = torch.Generator()
        self.captured = Captured(self.compute, CPU, generators=[self.draws], note=note)
        self.captured.capture = True
        monkeypatch.setattr(self.captured, "_run_on_side_stream", self.compute)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
        monkeypatch.setattr(torch.cuda, "graph", lambda graph, stream: self)
        self.works = works

    def compute(self) -> str:
        if self.recording:
            return "where results stand"
        self.computed += 1
        return "computed"

    def __enter__(self) -> None:
        if not self.works:
            raise RuntimeError("operation not permitted when stream is capturing\ntrace")
        self.recording = True

    def __exit__(self, *_: object) -> None:
        self.recording = False


def test_every_call_computes_once_before_during_and_after_the_capture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    notes: list[str] = []
    counter = Counter(monkeypatch, works=True, note=notes.append)
    results = [counter.captured() for _ in range(7)]
    assert results == ["computed"] * WARMUP + ["where results stand"] * (7 - WARMUP)
    graph = counter.captured.graph
    assert isinstance(graph, FakeGraph)
    assert counter.computed + graph.replays == 7
    assert graph.generators == [counter.draws]
    assert notes == []


def test_function_that_cannot_be_captured_is_computed_and_the_reason_noted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    notes: list[str] = []
    counter = Counter(monkeypatch, works=False, note=notes.append)
    assert [counter.captured() for _ in range(7)] == ["computed"] * 7
    assert counter.computed == 7
    assert notes == [
        "runs without a CUDA graph: operation not permitted when stream is capturing trace"
    ]


def test_failed_capture_is_raised_without_a_note_function(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counter = Counter(monkeypatch, works=False, note=None)
    with pytest.raises(RuntimeError, match="stream is capturing"):
        counter.captured.prepare()


def test_prepared_function_is_captured_before_its_first_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counter = Counter(monkeypatch, works=True, note=None)
    counter.captured.prepare()
    assert counter.computed == WARMUP
    assert counter.captured() == "where results stand"
