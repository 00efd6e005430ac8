"""A session that predicts with aiconfigurator; the module imports no other package."""

import logging
from importlib.metadata import version
from typing import Any


class AiconfiguratorSession:
    """aiconfigurator, with the tables of a system kept loaded between shapes."""

    def __init__(self) -> None:
        self.versions: dict[tuple[str, str], str] = {}

    def describe(self) -> dict[str, Any]:
        """Return the version of the package."""
        return {"version": version("aiconfigurator")}

    def predict(
        self, *, folder: str, system: str, backend: str, workload: dict[str, int], kv_type: str
    ) -> dict[str, Any]:
        """Predict the seconds of prefill and per decode step of one static batch."""
        from aiconfigurator.cli.api import cli_estimate

        logging.disable(logging.WARNING)  # it logs every table that it reads
        estimate = cli_estimate(
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
        self.versions[system, backend] = estimate.backend_version
        return {
            "prefill": estimate.ttft / 1000,
            "step": estimate.tpot / 1000,
            "gibibytes": float(estimate.memory),
            "tables": estimate.backend_version,
        }


Session = AiconfiguratorSession  # worker.py looks this name up
