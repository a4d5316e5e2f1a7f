"""Which model for which data: each kind alone, pooled and federated, with processor seconds and bytes.

    python benchmarks/models.py --datasets DATASETS                # two cores: 2,000 crystals of up to 20 atoms
    python benchmarks/models.py --datasets DATASETS --on-gpu       # one GPU: 12,897 crystals of up to 200 atoms

Every number is of `ray-fed train`: four silos of 10, 20, 30 and 40 % of the training rows, a common test set of other
formulas. One line of JSON for each run goes to --out as it ends; a table of them all to the terminal.
"""

import argparse
import contextlib
import io
import json
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch

from pipelines.cli import main

DATA = {
    "mp_structures": ("mp_structures/mp_structures.parquet", "formation_energy_per_atom", "eV/atom"),
    "perov5": ("perov5/perov5.parquet", "heat_ref", "eV/atom"),
    "jarvis_supercon": ("jarvis_supercon/jarvis_supercon.parquet", "Tc_supercon", "K"),
    "composition": ("composition_formation_energy/formation_energy.parquet", "formation_energy_per_atom", "eV/atom"),
}
"""Name -> file, target, unit."""
MODELS = {
    "mlp": [],
    "boosted_trees": ["--tree-options", "trees=300"],
    "crystal_graph": ["--batch-size", "64", "--learning-rate", "0.003"],
    "crystal_graph, no descriptors": [
        "--batch-size", "64", "--learning-rate", "0.003", "--model-options", "descriptors=no",
    ],
    "chgnet": ["--batch-size", "32", "--learning-rate", "0.001"],
}  # fmt: skip
PLAIN = ["--alone", "network", "--early-stopping", "no", "--analysis", "no", "--calibration-fraction", "0"]
COLUMNS = ("data", "model", "alone", "pooled", "federated", "processor_s", "megabytes", "parameters")


def subset(options: argparse.Namespace, name: str, folder: Path) -> Path:
    """Write a seeded choice of rows, small crystals where there are any."""
    path = folder / f"{name}.parquet"
    if not path.exists():
        frame = pd.read_parquet(options.datasets / DATA[name][0])
        frame = frame[frame[DATA[name][1]].notna()]
        frame = frame[frame["n_sites"] <= options.most_sites] if "n_sites" in frame else frame
        frame.sample(min(options.rows, len(frame)), random_state=0).reset_index(drop=True).to_parquet(path)
    return path


def run(options: argparse.Namespace, name: str, model: str, folder: Path) -> dict[str, object]:
    """Train one kind of model on one data set."""
    _, target, unit = DATA[name]
    out = folder / f"{name}-{model.replace(', ', '-').replace(' ', '-')}-{time.time_ns()}"
    words = ["train", "--data", str(subset(options, name, folder)), "--target", target, "--unit", unit]
    words += ["--task", "regression", "--model", model.split(",")[0], *MODELS[model], *PLAIN, "--out", str(out)]
    is_graph = model not in ("mlp", "boosted_trees")
    words += ["--epochs", str(options.epochs)] if is_graph else []
    words += ["--cohort", options.cohort]
    started = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        code = main(words)
    if code:
        return {"data": name, "model": model, "failed": code}
    summary = json.loads((out / "summary.json").read_text())
    return {
        "data": name, "model": model, "rows": summary["federated.num_examples"],
        "test_rows": summary["test.num_examples"],
        "alone": summary["silo.silo-4.mae"], "pooled": summary["pooled.mae"], "federated": summary["federated.mae"],
        "processor_s": time.process_time() - started, "train_s": summary["seconds.compute"],
        "megabytes": summary["bytes_sent"] / 1e6, "parameters": summary["num_parameters"], "epochs": options.epochs,
    }  # fmt: skip


def table(results: list[dict]) -> str:
    lines = [" | ".join(COLUMNS)]
    for one in results:
        shown = [f"{one[key]:.4g}" if isinstance(one.get(key), float) else str(one.get(key, "")) for key in COLUMNS]
        lines.append(" | ".join(shown))
    return "\n".join(lines)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--on-gpu", action="store_true", help="the run that two cores cannot do")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--most-sites", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=30, help="of networks on graphs; the others have their defaults")
    parser.add_argument("--only", nargs="*", default=list(DATA))
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument(
        "--cohort", choices=("local", "ray"), default="local", help="ray: silos on GPUs, where there are"
    )
    parser.add_argument("--out", type=Path, default=Path("models.jsonl"))
    options = parser.parse_args()
    if options.on_gpu:
        options.rows, options.most_sites, options.epochs, options.cohort = 12_897, 200, 100, "ray"
        options.only, options.models = ["mp_structures"], ["mlp", "boosted_trees", "crystal_graph"]
    return options


if __name__ == "__main__":
    options = parsed()
    torch.set_num_threads(1)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only:
            for model in options.models:
                if name == "composition" and model not in ("mlp", "boosted_trees"):
                    continue  # formulas have no atoms' places
                results.append(run(options, name, model, Path(folder)))
                with options.out.open("a") as file:
                    file.write(json.dumps(results[-1]) + "\n")
                print(table(results[-1:]), file=sys.stderr)
    print(table(results))
