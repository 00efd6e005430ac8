"""The program of a session process: JSON requests on stdin, JSON answers on stdout.

Each request calls a method of one ``Session``. The file is run by its path in an engine's own
environment (``python worker.py vllm_session.py``), so it imports only the standard library. All
other output of the process goes to stderr.
"""

import json
import os
import runpy
import sys
from typing import Any


def answer(session: Any, line: str) -> dict[str, Any]:
    """Call the method that a request names; return its result or the text of its error."""
    request = json.loads(line)
    method = getattr(session, request.pop("method"))
    try:
        return {"result": method(**request)}
    except Exception as error:  # an engine may raise anything; the client handles it
        return {"error": f"{type(error).__name__}: {error}"}


def main(path: str) -> None:
    """Answer requests until stdin ends, also because the parent process died."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # output of the engine must not mix with the answers
    session = runpy.run_path(path)["Session"]()
    for line in sys.stdin:
        answers.write(json.dumps(answer(session, line)) + "\n")
        answers.flush()
    os._exit(0)  # threads of an engine may never end


if __name__ == "__main__":
    main(sys.argv[1])
