"""An engine's code in a process of its own.

A crash or an abort there is one shape that cannot be served, memory is free again when it ends,
and the process may run in another environment than ours.
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

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.errors import InputError, WorkError
from shapelaw.scaling.extras import installed_version, installing
from shapelaw.scaling.files import write_json
from shapelaw.search.engines._timed import Server, Timing
from shapelaw.search.workload import Workload

SESSIONS = Path(__file__).parent
CPU_LIMIT = 8 * 2**30  # bytes of weights and cache
PATIENCE = 1800  # seconds until a process that does not answer is ended
COMPLAINT = 3  # lines of what a process said last


class MissingError(InputError):
    """The engine is not installed; the text says how to get it."""


class SessionProcess:
    """A session (a file of ``sessions``) in a process; methods are asked for by name.

    Raises
    ------
    MissingError
        The python does not start.
    """

    def __init__(
        self,
        session: str,
        *,
        python: str = sys.executable,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.complaints = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        command = [python, str(SESSIONS / "worker.py"), str(SESSIONS / session)]
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.complaints,
                encoding="utf-8",
                env={**_outer_environment(), **(environment or {})},
            )
        except OSError as error:
            self.complaints.close()
            raise MissingError(f"{python} does not start ({error})") from None

    def ask(self, method: str, *, seconds: float = PATIENCE, **fields: Any) -> Any:
        """Call a method of the session.

        Raises
        ------
        InputError
            The method raised, the process died or it did not answer in time.
        """
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None and stdout is not None  # noqa: PT018 - both are pipes
        late = threading.Timer(seconds, self.process.kill)
        late.start()
        try:
            stdin.write(json.dumps({"method": method, **fields}) + "\n")
            stdin.flush()
            line = stdout.readline()
        except OSError:  # it died before it read
            line = ""
        finally:
            alive = late.is_alive()
            late.cancel()
        if not line:
            raise InputError(self._end() if alive else f"no answer within {seconds:.0f} s")
        answer = json.loads(line)
        if "error" in answer:
            raise InputError(answer["error"])
        return answer["result"]

    @property
    def alive(self) -> bool:
        """The process can be asked again."""
        return self.process.poll() is None

    def _end(self) -> str:
        """How the process ended and what it said last."""
        code = self.process.wait()
        self.complaints.seek(0)
        said = self.complaints.read().decode(errors="replace").split("\n")
        last = " | ".join(line.strip() for line in said if line.strip()[:1])[-400:]
        return f"its process ended with code {code}: {last or 'it said nothing'}"

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.complaints):
            try:
                if stream is not None:
                    stream.close()
            except OSError:  # what could not be written to a dead process
                continue


class ProcessServer(Server):
    """A shape that a process has loaded; ``folder`` holds its files until the end."""

    def __init__(self, process: SessionProcess, folder: "tempfile.TemporaryDirectory[str]") -> None:
        self.process, self.folder = process, folder
        self.sequences = 0

    def load(self, shape: Shape, workload: Workload, **fields: Any) -> None:
        """Load the shape and let it serve once: what cannot run is known before it is timed.

        Raises
        ------
        InputError
            The engine does not load or serve the shape.
        """
        self.sequences = workload.concurrency
        try:
            self.process.ask("load", workload=numbers(shape, workload), **fields)
            self.serve(2)
        except InputError as error:
            self.close()
            raise InputError(f"{shape} under {workload} cannot be served: {error}") from None
        except BaseException:  # nobody else knows of the process
            self.close()
            raise

    def serve(self, outputs: int) -> Timing:
        """Run all prompts in the process."""
        found = self.process.ask("serve", outputs=outputs)
        if found["produced"] != [outputs] * self.sequences:
            raise WorkError(
                f"the engine produced {found['produced']} tokens, not {outputs} for each of "
                f"{self.sequences} sequences"
            )
        return Timing(found["prefill"], found["decode"], found["cpu"])

    def close(self) -> None:
        """End the process and remove its files."""
        self.process.close()
        self.folder.cleanup()


def numbers(shape: Shape, workload: Workload) -> dict[str, int]:
    """The numbers that a session needs of a workload."""
    return {
        "input_tokens": workload.input_tokens,
        "output_tokens": workload.output_tokens,
        "concurrency": workload.concurrency,
        "vocab_size": shape.vocab_size,
    }


def write_config(shape: Shape, workload: Workload, folder: Path, **changes: Any) -> None:
    """Write a config.json that has room for the workload."""
    length = workload.input_tokens + workload.output_tokens
    write_json(
        folder / "config.json",
        shape.to_config(max_position_embeddings=length)
        | {"torch_dtype": workload.dtype, "bos_token_id": 0, "eos_token_id": 0}
        | changes,
    )


def refuse_above(limit: float, needed: int, what: str, place: str) -> None:
    """Refuse what needs more bytes than there are.

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
    """Version of an optional package.

    Raises
    ------
    MissingError
        It is not installed.
    """
    found = installed_version(package)
    if found is None:
        raise MissingError(f"`--engine {engine}` needs {package}; `{installing(package)}`")
    return found


def _outer_environment() -> dict[str, str]:
    """Ours, without what would lead another python to our packages."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
