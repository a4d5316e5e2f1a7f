"""What could be reconstructed from what leaves a silo under each setting, from how much, at what cost in accuracy.

`ray-fed audit` on the formation-energy federation, embedded data, four silos, once per seed (split, initial weights,
shuffles); counts are added over seeds, errors have mean and standard deviation, costs are paired by seed.

    python benchmarks/what_leaves.py --seeds 0 1 2 --keep FOLDER      # finished seeds are kept in FOLDER
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pipelines import cli

ROUNDS = 2
LISTED = 4000
"""Records on the attacker's list: all 2,000 of the silos, and as many that are in none."""
ATTACKS = (".row space", ".least squares")
FEDERATION = "--rows 3000 --test-rows 1000 --epochs 20 --rounds 5 --baselines no --cohort local"
LEAKY = f"{FEDERATION} --optimizer sgd --communication-frequency batch --batch-size 32".replace("--rounds 5 ", "")
KINDS = ("gradient of one record", "gradient of a batch of 8", "gradient of a whole batch", "update of a round")
DEFENCES = (
    "none", "clip:1", "fp16", "int8", "noise:0.1", "noise:1", "prune:0.9", "prune:0.99", "silo_dp:1000", "silo_dp:100",
    "secure sum",
)  # fmt: skip
SGD = "batch:8+steps:1+sgd"
CHANGES = (
    "as set up", "batch:8", "steps:1", "int8", "top_k", "dp:50", "dp:8", "dp:1",
    SGD, "batch:32+steps:1+sgd", "batch:8+steps:4+sgd", "batch:8+steps:16+sgd", f"{SGD}+fp16", f"{SGD}+int8",
    f"{SGD}+top_k", "batch:8+steps:1+dp:8+sgd",
    "batch:8+steps:1+dp:1+sgd",
)  # fmt: skip
GATED = (
    ("as set up", FEDERATION, "yes"),
    ("SGD, a message per batch of 8", LEAKY, "yes"),
    (
        "the same under secure aggregation",
        f"{LEAKY} --secure-aggregation yes --epochs 2".replace("--epochs 20 ", ""),
        "yes",
    ),
    ("an owner who says nothing", FEDERATION, "no"),
)
Found = Mapping[str, float]


def said(arguments: Sequence[str]) -> tuple[int, str]:
    """Return exit code and output of a command."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        code = cli.main(list(arguments))
    return code, output.getvalue()


PIECES = (
    (DEFENCES[1:-1], CHANGES[1:2]),
    *((DEFENCES[2:3], CHANGES[a:b]) for a, b in ((2, 8), (8, 12), (12, 15), (15, 17))),
)
"""Defences and changes of one audit: a seed is done in pieces of less than a minute."""


def audited(seed: int, folder: Path) -> Found:
    """Return the summaries of one seed's audits together."""
    kept = folder / f"what_leaves-{seed}.json"
    found: dict[str, float] = json.loads(kept.read_text()) if kept.exists() else {}
    for defences, changes in PIECES:
        if any(f"training.{change}.in_sum" not in found for change in changes):
            found = piece(seed, defences, changes) | found
            kept.write_text(json.dumps(found))
    return found


def piece(seed: int, defences: Sequence[str], changes: Sequence[str]) -> dict[str, float]:
    """Return the summary of one audit."""
    with tempfile.TemporaryDirectory() as place:
        run, audit = f"{place}/run", f"{place}/audit"
        said(["formation-energy", *FEDERATION.split(), "--seed", str(seed), "--out", run])
        chosen = ["--defences", ",".join(defences), "--changes", ",".join(changes), "--rounds", str(ROUNDS)]
        said(["audit", run, *chosen, "--list-length", str(LISTED), "--out", audit])
        return json.loads(Path(audit, "summary.json").read_text())


def named(audits: Sequence[Found], keys: Sequence[str]) -> str:
    """Return `named / listed (~by chance)` over silos and seeds; of each the attack that named most beyond chance."""
    best = [
        max(
            ({part: one[f"{key}{attack}.{part}"] for part in ("named", "listed", "by_chance", "beyond_chance")}
             for attack in ("", *ATTACKS) if f"{key}{attack}.named" in one),
            key=lambda counted: (counted["beyond_chance"], counted["named"]),
        )
        for one in audits
        for key in keys
    ]  # fmt: skip
    right, listed, by_chance = (sum(one[part] for one in best) for part in ("named", "listed", "by_chance"))
    return f"{right:,.0f} / {listed:,.0f} (~{by_chance:.0f})"


def of_kind(audits: Sequence[Found], kind: str, defence: str) -> str:
    """Return found / records of a kind of message under a defence, over silos and seeds."""
    keys = [
        key.removesuffix(".exact")
        for key in audits[0]
        if key.startswith("silo-") and f".{kind}" in key and key.endswith(f".{defence}.exact")
    ]
    found = sum(one[f"{key}.{how}"] for one in audits for key in keys for how in ("exact", "near"))
    records = sum(one[f"{key}.records"] for one in audits for key in keys)
    return f"{found:,} / {records:,}; {named(audits, keys)}"


def cost(audits: Sequence[Found], name: str) -> list[str]:
    """Return error and cost, with spread over seeds."""
    errors = [one[f"mae.{name}"] for one in audits]
    costs = [error - one["mae.none"] for error, one in zip(errors, audits, strict=True)]
    return [
        f"{statistics.mean(errors):.3f} ± {spread(errors):.3f}",
        f"{statistics.mean(costs):+.3f} ± {spread(costs):.3f}",
    ]


def spread(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else float("nan")


def row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def report(audits: Sequence[Found]) -> Iterator[str]:
    """Yield both tables as Markdown."""
    yield row(["defence", *KINDS, "MAE, eV/atom", "cost"])
    yield row(["---"] * (len(KINDS) + 3))
    for name in DEFENCES:
        yield row([name, *(of_kind(audits, kind, name) for kind in KINDS), *cost(audits, name)])
    yield ""
    yield row(
        ["training", "rows behind a message", "found", "named", "in the sum of 4 silos", "named there", "MAE, eV/atom",
         "cost"]
    )  # fmt: skip
    yield row(["---"] * 8)
    for name in CHANGES:
        key, records = f"training.{name}", [one[f"training.{name}.records"] for one in audits]
        found = sum(one[f"{key}.found"] for one in audits)
        rows = round(sum(records) / len(records) / 4)
        in_sum = f"{sum(one[f'{key}.in_sum'] for one in audits):,}"
        counts = [f"{rows:,}", f"{found:,} / {sum(records):,}", named(audits, [key]), in_sum,
                  named(audits, [f"{key}.in_sum"])]  # fmt: skip
        yield row([name, *counts, *cost(audits, "none" if name == "as set up" else name)])


def gates(folder: Path) -> Iterator[str]:
    """Yield what the gate for CI says of each federation, with its exit code."""
    gate = ["--max-leak", "0", "--costs", "no", "--defences", "fp16", "--changes", "batch:8"]
    yield f"ray-fed audit RUN {' '.join(gate)}"
    for name, options, is_allowed in GATED:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            Path(place, "site.yaml").write_text(f"perimeter: {{audit: {is_allowed}}}\n")
            said(["formation-energy", *options.split(), "--out", f"{place}/run"])
            policy = ["--policy", f"{place}/site.yaml", "--out", f"{place}/audit"]
            with contextlib.redirect_stderr(io.StringIO()) as errors:
                code, output = said(["audit", f"{place}/run", *gate, *policy])
            lines = [*output.splitlines(), *errors.getvalue().splitlines()]
            verdict = next(line for line in reversed(lines) if "max_leak" in line or "ray-fed audit:" in line)
            yield f"{name}: exit code {code}\n    {verdict.replace(place, '...')}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--gates", action="store_true", help="also show the gate for CI")
    options = parser.parse_args()
    options.keep.mkdir(exist_ok=True)
    (options.keep / "site.yaml").write_text("perimeter: {audit: true}\n")
    os.environ["RAY_FED_SITE"] = str(options.keep)
    audits = [audited(seed, options.keep) for seed in options.seeds]
    print("\n".join(report(audits)))
    if options.gates:
        print("\n".join(["", *gates(options.keep)]))


if __name__ == "__main__":
    sys.exit(main())
