"""Queries over 140,000 synthetic cards: milliseconds from text to DataFrame.

python benchmarks/library_query.py
"""

import tempfile
import time
from pathlib import Path

import numpy as np

from ray_fed.model_library.cards import FIELDS
from ray_fed.model_library.index import Index

COUNT = 140_000
QUERIES = (
    "property = band_gap and mae < 0.5 and descriptor = guo73",
    "meanAbsError < 0.02",
    "property = property_7 and method in (random_forest, elastic_net) order by r2 desc limit 20",
    "n_train > 4990 and num_parameters < 5000",
    "name like '%99999%'",
    "order by mae limit 100",
    "property = band_gap",
)


def rows():
    """Yield synthetic rows: 40 properties, 6 descriptors, 4 methods, random numbers."""
    draw = np.random.default_rng(0)
    names = ["band_gap", *(f"property_{n}" for n in range(39))]
    numbers = draw.random((COUNT, 3))
    whole = draw.integers(0, 5000, (COUNT, 2))
    for at in range(COUNT):
        row = dict.fromkeys(FIELDS)
        row |= {
            "id": f"{at * 2654435761 % 2**32:08x}" * 8, "name": f"model {at}", "property": names[at % 40], "unit": "eV",
            "descriptor": ("guo73", "guo65", "rich", "rdf", "morgan", "maccs")[at // 40 % 6],
            "method": ("mlp", "mlp", "random_forest", "elastic_net")[at // 240 % 4], "mae": numbers[at, 0],
            "r2": numbers[at, 1], "rmse": numbers[at, 2], "n_train": int(whole[at, 0]),
            "num_parameters": int(whole[at, 1]) * 10, "succeed": 1, "deprecated": 0, "modelset": f"set{at % 65}",
            "table_hash": "f" * 64, "licence": "CC-BY 4.0", "created": "2026-01-01T00:00:00+00:00", "seed": at,
        }  # fmt: skip
        yield row


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        index = Index(Path(folder) / "index.sqlite")
        index.create()
        start = time.perf_counter()
        index.add(rows())
        size = index.path.stat().st_size / 1e6
        print(f"{COUNT:,} cards indexed in {time.perf_counter() - start:.1f} s, {size:.0f} MB")
        print("| query | rows | median ms | slowest ms |")
        print("|---|---|---|---|")
        for query in QUERIES:
            times = []
            for _ in range(11):
                start = time.perf_counter()
                found = index.query(query)
                times.append(1e3 * (time.perf_counter() - start))
            print(f"| `{query}` | {len(found):,} | {np.median(times):.1f} | {max(times):.1f} |")


if __name__ == "__main__":
    main()
