import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.schema import conform
from shapelaw.trainers.gpu import autotune as packing
from shapelaw.trainers.gpu.autotune import (
    Packing,
    PackTrial,
    choose_packing,
    packing_key,
    packings,
    trial_processes,
    trial_stack,
)
from support.small_runs import SHAPE, spec

CPU = torch.device("cpu")
TOKENS = np.random.default_rng(0).integers(0, 256, 5_000).astype(np.uint16)


def test_a_trial_counts_the_tokens_of_all_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(np.arange(0.0, 100.0))  # every look at the clock is a second later
    monkeypatch.setattr(packing.time, "perf_counter", lambda: float(next(now)))
    trial = trial_stack(spec(), TOKENS, 3, device=CPU, seconds=2.5)
    # looks at 0, 1, 2 and 3: two blocks, of one and two steps; the last look is at 4
    assert trial == PackTrial(replicas=3, processes=1, tokens_per_second=3 * 3 * 64 / 4)


def measured(monkeypatch: pytest.MonkeyPatch, speed: dict[tuple[int, int], float]) -> list[object]:
    """Trials that answer from a table instead of a device."""
    asked: list[object] = []

    def answer(counts: tuple[int, int]) -> PackTrial:
        asked.append(counts)
        return PackTrial(
            replicas=counts[0],
            processes=counts[1],
            tokens_per_second=speed[counts],
            bytes=10 * counts[0],
        )

    monkeypatch.setattr(packing, "trial_stack", lambda s, t, k, **_: answer((k, 1)))
    monkeypatch.setattr(packing, "trial_processes", lambda s, t, counts, **_: answer(counts))
    return asked


def test_stacks_grow_while_it_pays_and_the_fastest_is_chosen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    speed = {(1, 1): 10.0, (2, 1): 19.0, (4, 1): 30.0, (8, 1): 31.0,
             (1, 2): 15.0, (1, 4): 15.5, (4, 2): 29.0}  # fmt: skip
    asked = measured(monkeypatch, speed | {(4, 4): 1.0})
    chosen = choose_packing(spec(), TOKENS, device=CPU)
    assert (chosen.replicas, chosen.processes, chosen.tokens_per_second) == (4, 1, 30.0)
    assert asked[:6] == [(1, 1), (2, 1), (4, 1), (8, 1), (1, 2), (1, 4)]
    assert [(t.replicas, t.processes) for t in chosen.trials] == asked


def test_processes_are_chosen_where_they_are_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    speed = {(1, 1): 10.0, (2, 1): 9.0, (1, 2): 19.0, (1, 4): 36.0, (1, 8): 20.0}
    measured(monkeypatch, speed)
    chosen = choose_packing(spec(), TOKENS, device=CPU)
    assert (chosen.replicas, chosen.processes) == (1, 4)


def test_a_packing_that_would_not_fit_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = measured(monkeypatch, {(k, p): float(k * p) for k in (1, 2, 4, 8) for p in (1, 2, 4)})
    monkeypatch.setattr(packing, "free_bytes", lambda device: 50)  # of 10 bytes a replica: four
    chosen = choose_packing(spec(), TOKENS, device=CPU)
    assert max(k * p for k, p in asked) == 4  # type: ignore[misc]
    assert (chosen.replicas, chosen.processes) == (4, 1)


def test_a_trial_that_runs_out_of_memory_ends_the_growth(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert trial_stack(spec(), TOKENS, 1, device=CPU, seconds=0.01).note == ""
    monkeypatch.setattr(packing, "_prepare", full)
    assert trial_stack(spec(), TOKENS, 1, device=CPU).note == "out of memory"
    with pytest.raises(InputError, match=r"cannot be trained on cpu .* out of memory; use fewer"):
        choose_packing(spec(), TOKENS, device=CPU)


def test_decisions_are_kept_beside_the_ledger_and_measured_once(tmp_path: Path) -> None:
    asked: list[str] = []

    def choose(run: object, tokens: np.ndarray, *, device: torch.device) -> Packing:
        asked.append(run.run_id)  # type: ignore[attr-defined]
        trial = PackTrial(replicas=4, processes=1, tokens_per_second=7.5)
        return Packing(replicas=4, processes=1, tokens_per_second=7.5, device="cpu",
                       shape="tiny", trials=(trial,))  # fmt: skip

    wide = spec(run_id="wide", shape=replace(SHAPE, intermediate_size=48))
    runs = [spec(run_id="a"), spec(run_id="b", seed=9, tokens=10**6), wide]
    path = tmp_path / "packing.json"
    first = packings(runs, TOKENS, path, device=CPU, choose=choose)
    assert asked == ["a", "wide"]  # seeds and tokens do not matter, the shape does
    assert packings(runs, TOKENS, path, device=CPU, choose=choose) == first
    assert asked == ["a", "wide"]
    assert json.loads(path.read_text())[packing_key(wide, CPU)]["replicas"] == 4


def test_a_file_that_is_no_list_of_packings_is_named(tmp_path: Path) -> None:
    path = tmp_path / "packing.json"
    path.write_text('{"a": {"replicas": 1}}')
    with pytest.raises(InputError, match=r"packing\.json is damaged .`a\.processes` is missing"):
        packings([spec()], TOKENS, path, device=CPU)


@pytest.mark.slow
def test_processes_really_share_the_device() -> None:
    trial = trial_processes(spec(), TOKENS, (2, 2), device=CPU, seconds=0.2)
    assert trial.note == ""
    assert (trial.replicas, trial.processes) == (2, 2)
    assert trial.tokens_per_second > 0


@pytest.mark.slow
def test_a_process_that_fails_ends_the_trial_with_its_reason() -> None:
    short = TOKENS[:20]  # too few for a window
    trial = trial_processes(spec(), short, (1, 2), device=CPU, seconds=0.2)
    assert trial.tokens_per_second == 0
    assert "must hold at least 32 tokens" in trial.note


def test_a_packing_survives_json() -> None:
    trial = PackTrial(replicas=2, processes=1, tokens_per_second=0.1, bytes=3, note="n")
    known = Packing(replicas=2, processes=1, tokens_per_second=0.1, device="d", shape="s",
                    trials=(trial,))  # fmt: skip
    assert conform(json.loads(json.dumps(asdict(known))), Packing) == known
