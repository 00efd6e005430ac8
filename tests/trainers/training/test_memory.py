import subprocess
import sys
import textwrap

import pytest

from shapelaw.trainers.training import execution

PROGRAM = """
    import resource, sys, torch
    from shapelaw.trainers.training.execution import keep_freed_memory
    torch.set_num_threads(1)
    if sys.argv[1] == "keep":
        assert keep_freed_memory()
    def work():
        blocks = [torch.ones(500_000) for _ in range(20)]
    for _ in range(5):
        work()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        work()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), how]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    return int(done.stdout)


@pytest.mark.skipif(not execution.keep_freed_memory(), reason="needs glibc")
def test_memory_that_was_freed_is_not_fetched_again() -> None:
    assert faults("keep") < 1000


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution.ctypes, "CDLL", lambda name: object())
    assert not execution.keep_freed_memory.__wrapped__()
    monkeypatch.setattr(execution.sys, "platform", "darwin")
    assert not execution.keep_freed_memory.__wrapped__()
