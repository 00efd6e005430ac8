"""Answers requests on stdin with lines on stdout, both JSON, by the methods of one ``Session``.

Run by path in an engine's own environment (``python worker.py vllm_session.py``), so that nothing
but Python's own library is imported here. Whatever else is printed goes to stderr.
"""

import json
import os
import runpy
import sys
from typing import Any


def answer(session: Any, line: str) -> dict[str, Any]:
    """What a request's method returns, or the text of what it raised."""
    request = json.loads(line)
    method = getattr(session, request.pop("method"))
    try:
        return {"result": method(**request)}
    except Exception as error:  # an engine may raise anything; the one who asked decides
        return {"error": f"{type(error).__name__}: {error}"}


def main(path: str) -> None:
    """Serve until stdin ends, as it does when the parent is gone."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # an engine's own output must not come between the answers
    session = runpy.run_path(path)["Session"]()
    for line in sys.stdin:
        answers.write(json.dumps(answer(session, line)) + "\n")
        answers.flush()
    os._exit(0)  # an engine's threads may wait for ever on the way out


if __name__ == "__main__":
    main(sys.argv[1])
