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

ROUNDS, COST_ROUNDS = 3, 2
"""Rounds attacked, of 5; rounds trained under each defence and change."""
LISTED = 1500
"""Records on the attacker's list: 725 of the silos' 2,000, and others."""
ATTACKS = (".row space", ".least squares", ".least squares of what is left", ".least squares, added up over rounds")
FEDERATION = "--rows 3000 --test-rows 1000 --epochs 20 --rounds 5 --baselines no --cohort local"
LEAKY = f"{FEDERATION} --optimizer sgd --communication-frequency batch --batch-size 32".replace("--rounds 5 ", "")
KINDS = (
    "gradient of one record", "gradient of a batch of 8", "gradient of a whole batch", "update of a round",
    "updates of rounds together",
)  # fmt: skip
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
    (DEFENCES[1:4], CHANGES[1:4]),
    (DEFENCES[4:7], CHANGES[4:8]),
    (DEFENCES[7:10], CHANGES[8:12]),
    (DEFENCES[2:3], CHANGES[12:]),
)
"""Defences and changes of one audit: a seed is done in pieces of a minute or two. The first asks with shadow models."""


def audited(seed: int, folder: Path) -> Found:
    """Return the summaries of one seed's audits together."""
    kept = folder / f"what_leaves-{seed}.json"
    found: dict[str, float] = json.loads(kept.read_text()) if kept.exists() else {}
    for number, (defences, changes) in enumerate(PIECES):
        if any(f"training.{change}.in_sum" not in found for change in changes):
            found = piece(seed, defences, changes, folder, is_first=number == 0) | found
            kept.write_text(json.dumps(found))
    return found


def piece(seed: int, defences: Sequence[str], changes: Sequence[str], folder: Path, is_first: bool) -> dict[str, float]:
    """Return the summary of one audit; what the first one prints is kept."""
    run = folder / f"run-{seed}"
    if not run.exists():
        said(["formation-energy", *FEDERATION.split(), "--seed", str(seed), "--out", str(run)])
    with tempfile.TemporaryDirectory() as place:
        chosen = [
            "--defences",
            ",".join(defences),
            "--changes",
            ",".join(changes),
            "--shadows",
            "8" if is_first else "0",
        ]
        rounds = ["--rounds", str(ROUNDS), "--cost-rounds", str(COST_ROUNDS), "--list-length", str(LISTED)]
        _, output = said(["audit", str(run), *chosen, *rounds, "--out", f"{place}/audit"])
        if is_first:
            (folder / f"what_leaves-{seed}.txt").write_text(output)
        return json.loads(Path(place, "audit", "summary.json").read_text())


def named(audits: Sequence[Found], keys: Sequence[str]) -> str:
    """Return `named / listed (~by chance)` over silos and seeds; of each the attack that named most beyond chance."""
    if not keys:
        return "–"
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
    """Return found (by one who knows the marginals) / records of a kind of message under a defence, and named / listed,
    over silos and seeds."""
    keys = [
        key.removesuffix(".exact")
        for key in audits[0]
        if key.startswith("silo-") and f".{kind}" in key and key.endswith(f".{defence}.exact")
    ]
    if not keys or kind.startswith("updates"):
        return named(audits, keys)
    found = sum(one[f"{key}.with_marginals"] for one in audits for key in keys)
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
