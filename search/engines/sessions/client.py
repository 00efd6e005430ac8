"""The client of an engine that runs in a process of its own.

A crash or an abort in that process is one shape that cannot be served, the memory is free again
when the process ends, and it may run in another Python environment than shapelaw.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.errors import InputError, WorkError
from shapelaw.scaling.extras import installed_version, installing
from shapelaw.scaling.files import write_json
from shapelaw.search.engines._timed import Server, Timing, serving_config
from shapelaw.search.workload import Workload

SESSIONS = Path(__file__).parent
CPU_LIMIT = 8 * 2**30  # bytes of weights and cache
ANSWER_SECONDS = 1800  # time limit of one request
MAX_STDERR = 400  # last characters of stderr that an error shows


class MissingError(InputError):
    """An engine is not installed; the text says how to install it."""


class SessionProcess:
    """A process that runs one session (a file of ``sessions``) and calls its methods by name.

    Raises
    ------
    MissingError
        The Python interpreter does not start.
    """

    def __init__(
        self,
        session: str,
        *,
        python: str = sys.executable,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.stderr = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        command = [python, str(SESSIONS / "worker.py"), str(SESSIONS / session)]
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.stderr,
                encoding="utf-8",
                env={**_outer_environment(), **(environment or {})},
            )
        except OSError as error:
            self.stderr.close()
            raise MissingError(f"{python} does not start ({error})") from None

    def ask(self, method: str, *, seconds: float = ANSWER_SECONDS, **fields: Any) -> Any:
        """Call a method of the session.

        Raises
        ------
        InputError
            The method raised an error, the process died or it did not answer in time.
        """
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None and stdout is not None  # noqa: PT018 - both were opened as pipes
        timer = threading.Timer(seconds, self.process.kill)
        timer.start()
        try:
            stdin.write(json.dumps({"method": method, **fields}) + "\n")
            stdin.flush()
            line = stdout.readline()
        except OSError:  # the process died before it read the request
            line = ""
        finally:
            alive = timer.is_alive()
            timer.cancel()
        if not line:
            raise InputError(self._describe_end() if alive else f"no answer within {seconds:.0f} s")
        answer = json.loads(line)
        if "error" in answer:
            raise InputError(answer["error"])
        return answer["result"]

    @property
    def alive(self) -> bool:
        """Return whether the process still runs."""
        return self.process.poll() is None

    def _describe_end(self) -> str:
        """Describe how the process ended and the last lines of its stderr."""
        code = self.process.wait()
        self.stderr.seek(0)
        lines = self.stderr.read().decode(errors="replace").split("\n")
        last = " | ".join(line.strip() for line in lines if line.strip())[-MAX_STDERR:]
        return f"its process ended with code {code}: {last or 'stderr is empty'}"

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.stderr):
            try:
                if stream is not None:
                    stream.close()
            except OSError:  # unsent bytes for a dead process
                continue


class ProcessServer(Server):
    """A shape that a session process has loaded; ``folder`` holds its files until it is closed."""

    def __init__(self, process: SessionProcess, folder: "tempfile.TemporaryDirectory[str]") -> None:
        self.process, self.folder = process, folder
        self.sequences = 0

    def load(self, shape: Shape | Architecture, workload: Workload, **fields: Any) -> None:
        """Load the shape and serve once, so that a failure shows before the timed repeats.

        Raises
        ------
        InputError
            The engine cannot load or serve the shape.
        """
        self.sequences = workload.concurrency
        try:
            self.process.ask("load", workload=session_workload(shape, workload), **fields)
            self.serve(2)
        except InputError as error:
            self.close()
            raise InputError(f"{shape} under {workload} cannot be served: {error}") from None
        except BaseException:  # no other object would end the process
            self.close()
            raise

    def serve(self, outputs: int) -> Timing:
        """Run all prompts in the process."""
        answer = self.process.ask("serve", outputs=outputs)
        if answer["produced"] != [outputs] * self.sequences:
            raise WorkError(
                f"the engine produced {answer['produced']} tokens, not {outputs} for each of "
                f"{self.sequences} sequences"
            )
        return Timing(answer["prefill"], answer["decode"], answer["cpu"])

    def close(self) -> None:
        """End the process and remove its files."""
        self.process.close()
        self.folder.cleanup()


def session_workload(shape: Shape | Architecture, workload: Workload) -> dict[str, int]:
    """Return the counts of a workload and a vocabulary that a session needs."""
    return {
        "input_tokens": workload.input_tokens,
        "output_tokens": workload.output_tokens,
        "concurrency": workload.concurrency,
        "vocab_size": shape.vocab_size,
    }


def write_config(
    shape: Shape | Architecture, workload: Workload, folder: Path, **changes: Any
) -> None:
    """Write a Hugging Face config.json whose positions suffice for the workload."""
    write_json(
        folder / "config.json",
        serving_config(shape, workload)
        | {"torch_dtype": workload.dtype, "bos_token_id": 0, "eos_token_id": 0}
        | changes,
    )


def refuse_above(limit: float, needed: int, what: str, place: str) -> None:
    """Check that a shape and its cache fit into memory.

    Parameters
    ----------
    limit, needed
        Available and needed bytes.
    what, place
        Names of the shape and of the memory, for the error.

    Raises
    ------
    InputError
        ``needed`` is above ``limit``.
    """
    if needed > limit:
        raise InputError(
            f"{what} needs {needed / 2**30:.0f} GiB, the limit of {place} is "
            f"{limit / 2**30:.0f}; lower the concurrency or the lengths"
        )


def version_of(package: str, *, engine: str) -> str:
    """Return the version of an optional package.

    Raises
    ------
    MissingError
        The package is not installed.
    """
    version = installed_version(package)
    if version is None:
        raise MissingError(f"`--engine {engine}` needs {package}; `{installing(package)}`")
    return version


def _outer_environment() -> dict[str, str]:
    """Return the environment without PYTHONPATH, which another Python must not inherit."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
