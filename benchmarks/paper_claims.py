"""The claims of Guo et al. 2022 (Fig. 3 and 4) on real and on embedded data, over several seeds.

Per federation: each silo alone, pooled, federated with 25 communications, on one common test set; and the three ways to
treat Adam's moments at an exchange.

    python benchmarks/paper_claims.py [--data mp_structures.parquet] [--split random] [--repeats 3]
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

FEDERATIONS = ("5000,5000", "1000,2000,3000,4000")


def run(*options: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "pipelines.cli", "formation-energy", "--cohort", "local", "--out", str(out)]
        subprocess.run([*command, *options], check=True, capture_output=True)
        return json.loads((out / "summary.json").read_text())


def line(name: str, summary: dict[str, float], key: str) -> str:
    mae, spread = summary[f"{key}.mae"], summary.get(f"{key}.mae_std", float("nan"))
    r2, r2_spread = summary[f"{key}.r2"], summary.get(f"{key}.r2_std", float("nan"))
    relative = 100 * (mae / summary["pooled.mae"] - 1) if "pooled.mae" in summary else float("nan")
    return f"| {name} | {mae:.4f} ± {spread:.4f} | {r2:.4f} ± {r2_spread:.4f} | {relative:+.1f} % |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="embedded")
    parser.add_argument("--split", default="random")
    parser.add_argument("--repeats", default="3")
    options = parser.parse_args()
    common = ["--data", options.data, "--rows", "12897", "--split", options.split, "--repeats", options.repeats]
    print(f"{Path(options.data).name}, {options.split} split, {options.repeats} seeds, {platform.platform()}")
    for silos in FEDERATIONS:
        summary = run(*common, "--silos", silos)
        print(f"\n| silos {silos} | MAE (eV/atom) | R2 | MAE against pooled |\n|---|---|---|---|")
        for number, size in enumerate(silos.split(","), start=1):
            print(line(f"silo-{number} alone, {int(size):,} rows", summary, f"silo.silo-{number}"))
        print(line("pooled", summary, "pooled"))
        print(line("federated, moments kept", summary, "federated"), flush=True)
        for policy in ("reset", "average"):
            other = run(*common, "--silos", silos, "--baselines", "no", "--optimizer-state", policy)
            other["pooled.mae"] = summary["pooled.mae"]
            print(line(f"federated, moments {policy}", other, "federated"), flush=True)


if __name__ == "__main__":
    main()
