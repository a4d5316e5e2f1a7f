"""FedTransfer on embedded micrographs: Tables 2 and 3 over seeds, what a generator's inputs are worth, codecs.

    python benchmarks/fedtransfer.py --out FOLDER [--repeats 3] [--studies tables,further,inputs,presets]
    python benchmarks/fedtransfer.py --out FOLDER --studies pair --data FOLDER_OF_A,FOLDER_OF_B [--masks B=...]

Every study is one or more runs of `ray-fed fedtransfer` under FOLDER; a broken-off one is gone on with, and the tables
are printed as Markdown. tables is the command at its default settings, further adds the methods that it leaves out.
With --cohort=local everything runs in this process, and the CPU seconds printed are those of the whole study. Data,
generators and folds are the same for all seeds; seeds vary the segmentation network's initial weights and the order of
the batches.
"""

import argparse
import json
import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from pipelines.cli import main as ray_fed
from pipelines.fedtransfer.config import METHOD_NAMES
from pipelines.fedtransfer.results import GLOBAL, ModelResult, header, model_results, table_rows, verdicts

SILOS = ["austenite", "iron"]
PLACES = [*SILOS, GLOBAL]
INPUTS = {
    "label": "label",
    "label, noise": "label,noise",
    "and level": "label,level,noise",
    "and band": "label,level,band,noise",
    "and light, line": "label,level,band,light,line,noise",
}
PRESETS = ("hybrid", "pix2pix", "pix2pixhd")
PAIR_METHODS = "separate,central,fed_avg,fed_bn,amplitude,transfer_int8"


def run(out: Path, *options: str) -> list[dict]:
    """Run the command, or go on with it, and return its lines."""
    ray_fed(["fedtransfer", f"--out={out}", *options])
    return lines_of(out)


def lines_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]


def tables(folder: Path, repeats: int, further: list[str]) -> None:
    """Print Tables 2-3 with the default's methods, and the verdicts."""
    _tables(run(folder / "tables", f"--repeats={repeats}", *further), repeats)


def all_methods(folder: Path, repeats: int, further: list[str]) -> None:
    """Go on with that run: the methods that the default leaves out have its generators and its seeds."""
    names = [name for name in METHOD_NAMES if name not in ("transfer_fp16", "transfer_int4")]
    _tables(run(folder / "tables", f"--repeats={repeats}", f"--methods={','.join(names)}", *further), repeats)


def pair(folder: Path, repeats: int, further: list[str]) -> None:
    """Print the tables of two folders of real micrographs, given with --data."""
    lines = run(folder / "pair", f"--repeats={repeats}", f"--methods={PAIR_METHODS}", *further)
    silos = list(next(iter(next(line["test"] for line in lines if "test" in line).values())))
    results = model_results(lines, silos)
    print(markdown([header([*silos, GLOBAL]), *table_rows(results, [*silos, GLOBAL])]))


def _tables(lines: list[dict], repeats: int) -> None:
    results = model_results(lines, SILOS)
    print(f"\n## Tables 2 and 3, {repeats} seeds\n")
    print(markdown([header(PLACES), *table_rows(results, PLACES)]))
    for said in verdicts(results):
        print(f"- {said}")
    print("\n### VI's parts on the austenite test set\n")
    print(markdown([["method", "merged", "split"], *([r.title, *_parts(r)] for r in results)]))
    print("\n### Codecs\n")
    print(markdown([["silo", "codec", "bytes", "PSNR, dB"], *_codecs(lines)]))


def inputs(folder: Path, repeats: int, further: list[str]) -> None:
    """Print what FedTransfer gains from each input of the generator."""
    variants = {name: [f"--style-inputs={given}"] for name, given in INPUTS.items()}
    _variants(folder / "inputs", "generator sees", variants, repeats, further)


def presets(folder: Path, repeats: int, further: list[str]) -> None:
    variants = {name: [f"--style={name}"] for name in PRESETS}
    _variants(folder / "presets", "preset", variants, repeats, further)


def _variants(folder: Path, what: str, variants: Mapping[str, list[str]], repeats: int, further: list[str]) -> None:
    rows = []
    for number, (name, options) in enumerate(variants.items()):
        given = ["--methods=transfer_int8", f"--repeats={repeats}", *options, *further]
        lines = run(folder / str(number), *given)
        (result,) = model_results(lines, SILOS)
        rows.append([name, *table_rows([result], PLACES)[0][1:], *_held_out_l1(lines)])
    print(f"\n## FedTransfer, int8, by {what}; {repeats} seeds\n")
    print(markdown([[what, *header(PLACES)[1:], "held-out L1 austenite", "iron"], *rows]))


def _held_out_l1(lines: Iterable[Mapping]) -> list[str]:
    (told,) = [line["facts"] for line in lines if line["stage"] == "generators"]
    return [f"{told[silo]['memorisation.held_out_l1']:.3f}" for silo in SILOS]


def _parts(result: ModelResult) -> list[str]:
    return [str(result.cells[SILOS[0], part]) for part in ("vi_under", "vi_over")]


def _codecs(lines: Iterable[Mapping]) -> list[list[str]]:
    (told,) = [line["facts"] for line in lines if line["stage"] == "generators"]
    return [
        [
            silo,
            codec,
            f"{told[silo][f'codec.{codec}.bytes']:,}",
            f"{told[silo][f'codec.{codec}.psnr_db'] or 'exact':.6}",
        ]
        for silo in SILOS
        for codec in ("fp32", "fp16", "int8", "int4")
    ]


def markdown(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--studies", default="tables,further,inputs,presets")
    options, further = parser.parse_known_args()
    print(f"Python {platform.python_version()}, torch {torch.__version__}; global: {GLOBAL} mean of the two test sets")
    known = {"tables": tables, "further": all_methods, "inputs": inputs, "presets": presets, "pair": pair}
    for name in options.studies.split(","):
        begun = _cpu_seconds()
        known[name](options.out, options.repeats, further)
        print(f"{name}: {_cpu_seconds() - begun:.0f} CPU seconds")


def _cpu_seconds() -> float:
    """Return the CPU time of this process; that of silos on Ray is not in it."""
    spent = os.times()
    return spent.user + spent.system


if __name__ == "__main__":
    main()
