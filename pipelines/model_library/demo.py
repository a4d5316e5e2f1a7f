"""`ray-fed library demo`: build, query, move, predict and transfer, on embedded data, without a download."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from actors.session import session
from pipelines.model_library.build import carry_out
from pipelines.model_library.config import BuildConfig, TransferConfig
from pipelines.model_library.figures import scatter_figure
from pipelines.model_library.transfer import summarise, table
from ray_fed.model_library.places import pull, push
from ray_fed.model_library.property_catalogue import embedded_tables
from ray_fed.model_library.store import Library
from ray_fed.reporting.figure_style import save_figure
from ray_fed.reporting.run_directory import RunDirectory

TARGET = "model_pnictides/formation_energy"
SILO_ROWS = 30
QUESTION = "property = formation_energy and r2 > 0.8 and descriptor = rich order by mae limit 5"


def demo(options: Mapping[str, Any], command_line: Sequence[str]) -> int:
    """Run the demonstration; returns 0."""
    directory = RunDirectory.create(options["out"], "library-demo")
    started = time.monotonic()
    with session(options.get("address", "local")):
        _demonstrate(directory, command_line)
    print(f"\n{time.monotonic() - started:.0f} s in all; {directory.path}")
    return 0


def _demonstrate(directory: RunDirectory, command: Sequence[str]) -> None:
    config = BuildConfig(
        library=str(directory.path / "library"), networks=24, forests=0, boosted=1, linear=2, max_rows=700,
        properties=("model_oxides", "model_halides", "model_chalcogenides"),
    )  # fmt: skip
    print("1. A library from three data sets of model crystals: oxides, halides, chalcogenides.")
    outcome = carry_out(config)
    print(f"   {outcome.models} models, {outcome.failures} failures, {outcome.seconds:.0f} s\n")
    print(f'2. ray-fed library query "{QUESTION}"')
    print(
        _indented(outcome.library.query(QUESTION).assign(id=lambda frame: frame["id"].str[:12]).to_string(index=False))
    )
    print(f"\n3. Push and pull: {_round_trip(outcome.library, directory.path)}\n")
    transfer = TransferConfig(
        library=config.library,
        target=TARGET,
        allow_related=True,
        rows=SILO_ROWS,
        draws=10,
        permutations=2,
        num_trees=40,
    )
    print(f"4. A silo with {SILO_ROWS} pnictides pulls all networks and searches them as Ray tasks at its place.")
    print("   Its rows stay there; models come in, errors go out.")
    _transfer(directory, outcome.library, transfer)
    directory.write_config({"command": " ".join(command), "build": vars(config), "transfer": vars(transfer)})


def _round_trip(library: Library, folder: Path) -> str:
    """Push to one place, pull at another, and compare predictions bit by bit."""
    from actors.library import predict_with

    place, other = folder / "pushed", Library.create(folder / "pulled")
    ids = library.query("method in (mlp, gradient_boosting, elastic_net) order by mae limit 6", ["id"])["id"].tolist()
    push(library, str(place), ids)
    pull(other, str(place))
    frame = embedded_tables()[TARGET].frame.head(200)
    here = [predict_with(str(library.path), model_id, frame) for model_id in ids]
    there = [predict_with(str(other.path), model_id, frame) for model_id in ids]
    same = all(np.array_equal(a, b) for a, b in zip(here, there, strict=True))
    digest = hashlib.sha256(b"".join(values.tobytes() for values in there)).hexdigest()[:12]
    return f"{len(ids)} models predicted by two actors: {'identical bits' if same else 'DIFFERENT BITS'} ({digest})"


def _transfer(directory: RunDirectory, library: Library, config: TransferConfig) -> None:
    from actors.library import LibrarySilo, search_at
    from ray_fed.model_library.silo_search import SiloTarget

    target = embedded_tables()[TARGET]
    ids = library.query("method = mlp", ["id"])["id"].tolist()
    silo = LibrarySilo.remote("pnictides", SiloTarget(TARGET, share_source_errors=True))
    sources = [library.packed(model_id) for model_id in ids]
    draws = search_at(silo, sources, config.protocol(len(target.frame)), config.head, config.draws)
    print(_indented(table(draws, target.unit, SILO_ROWS)))
    directory.write_summary(summarise(draws))
    figures = directory.figures
    save_figure(scatter_figure(draws[0], target.property_name, target.unit), figures / "sources.png")


def _indented(text: str) -> str:
    return "\n".join(f"   {line}" for line in text.splitlines())
