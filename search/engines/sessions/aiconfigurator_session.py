"""aiconfigurator's predictions from its kernel tables: imports aiconfigurator and no more."""

import logging
from importlib.metadata import version
from typing import Any


class AiconfiguratorSession:
    """Keeps the tables of a system loaded between shapes."""

    def __init__(self) -> None:
        self.versions: dict[tuple[str, str], str] = {}

    def describe(self) -> dict[str, Any]:
        """Version of the package."""
        return {"version": version("aiconfigurator")}

    def predict(
        self, *, folder: str, system: str, backend: str, workload: dict[str, int], kv_type: str
    ) -> dict[str, Any]:
        """Seconds of prefill and per decode step of one static batch; bytes; tables' version."""
        from aiconfigurator.cli.api import cli_estimate

        logging.disable(logging.WARNING)  # it tells of every table that it reads
        found = cli_estimate(
            folder,
            system,
            mode="static",
            backend_name=backend,
            # Finding the latest version reads hundreds of files, so it is done once.
            backend_version=self.versions.get((system, backend)),
            isl=workload["input_tokens"],
            osl=workload["output_tokens"],
            batch_size=workload["concurrency"],
            kvcache_quant_mode=kv_type,
        )
        self.versions[system, backend] = found.backend_version
        return {
            "prefill": found.ttft / 1000,
            "step": found.tpot / 1000,
            "gibibytes": float(found.memory),
            "tables": found.backend_version,
        }


Session = AiconfiguratorSession  # the name by which worker.py finds it
