"""Time to load and validate a run table of 10^6 rows; promise: under 10 s, CSV or Parquet.

The table is synthetic: valid shapes, losses of a law with noise, and all columns of the
quickstart's table. The time excludes writing the files.
"""

import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from record import finish

from shapelaw.scaling.files import data_folder
from shapelaw.scaling.runs.catalog import load_runs
from shapelaw.scaling.runs.reader import read_table
from shapelaw.scaling.runs.table import write_runs

ROWS = 1_000_000
REPEATS = 3


def synthetic_table(rows: int, seed: int = 0) -> pd.DataFrame:
    """Repeat the quickstart's rows with unique names, token counts and losses."""
    shipped = read_table(data_folder() / "quickstart" / "runs.csv")
    rng = np.random.default_rng(seed)
    table = shipped.iloc[np.arange(rows) % len(shipped)].reset_index(drop=True)
    tokens = np.rint(np.exp(rng.uniform(np.log(1e6), np.log(1e9), rows)))
    loss = 1 + 400 * table["n_non_embedding"] ** -0.6 + 20 * tokens**-0.3
    return table.assign(
        run_id=[f"run-{row}" for row in range(rows)],
        tokens=tokens.astype(np.int64),
        loss=loss * np.exp(rng.normal(0, 0.005, rows)),
    )


def main() -> None:
    figures: dict[str, object] = {"rows": ROWS, "promise_s": 10}
    table = synthetic_table(ROWS)
    figures["columns"] = table.shape[1]
    with tempfile.TemporaryDirectory() as folder:
        for ending in ("csv", "parquet"):
            path = Path(folder) / f"runs.{ending}"
            write_runs(path, table)
            seconds, reading = [], []
            for _ in range(REPEATS):
                begun = time.perf_counter()
                read_table(path)
                reading.append(time.perf_counter() - begun)
                begun = time.perf_counter()
                loaded = load_runs(path)
                seconds.append(time.perf_counter() - begun)
            assert len(loaded) == ROWS
            figures[f"{ending}_max_s"] = max(seconds)
            figures[f"{ending}_min_s"] = min(seconds)
            figures[f"{ending}_reading_min_s"] = min(reading)
            figures[f"{ending}_mib"] = path.stat().st_size / 2**20
    figures["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    finish("million_rows", figures)


if __name__ == "__main__":
    main()
