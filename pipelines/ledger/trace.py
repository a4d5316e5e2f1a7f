"""`ray-fed ledger trace RUN MODEL`: from a published model back to the updates that made it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.ledger.verify import examined, exit_code, read_ledgers
from ray_fed.errors import DataError
from ray_fed.perimeter.ledger import tensors_digest
from ray_fed.perimeter.lineage import Contribution, Origin, lineage, origin_of
from ray_fed.reporting.model_files import load_model
from ray_fed.reporting.run_directory import RunDirectory
from ray_fed.reporting.terminal import aligned


def run(options: Mapping[str, Any], _command_line: Sequence[str]) -> int:
    """Print where a model was written down, and its updates; returns what `ray-fed ledger verify` does.

    DataError for a model that was not made in this run.
    """
    path, model, rounds = options["run_directory"], options["model"], options["rounds"]
    directory = RunDirectory.open(path)
    coordinator, silos = read_ledgers(directory)
    comparison = examined(directory, coordinator, silos, options["key"])
    digest = model_digest(Path(model))
    origin = origin_of(coordinator, digest)
    if origin is None:
        raise DataError(f"{model}: its weights (sha256 {digest[:16]}...) are no model of the run {path}")
    contributions = lineage(coordinator, silos, origin)
    print(f"{model}\n  weights sha256 {digest}\n  is {_origin_text(origin)}")
    print(_counts_text(contributions))
    _show([each for each in contributions if each.server_round > origin.server_round - rounds])
    if comparison.problems or comparison.unknown:
        found = f"{len(comparison.problems)} problems, {len(comparison.unknown)} things that cannot be known"
        print(f"NOT verified: {found}; see ray-fed ledger verify {path}")
    return exit_code(comparison)


def model_digest(path: Path) -> str:
    """Return the hash of a model's weights, without the scalers that a model file carries along."""
    arrays, card = load_model(path)
    beside = {*card.scaler_tensors, *card.target_tensors}
    return tensors_digest({name: array for name, array in arrays.items() if name not in beside})


def _origin_text(origin: Origin) -> str:
    where = f"'{origin.model}' of job '{origin.session}', round {origin.server_round}"
    return f"{where}, made by {origin.strategy} (coordinator's line {origin.number})"


def _show(contributions: Sequence[Contribution]) -> None:
    if contributions:
        header = ["round", "silo", "rows", "norm", "update sha256", "silo's line"]
        print(aligned([header, *(_row(each) for each in contributions)], right=(0, 2, 3, 5), rule=True))


def _row(each: Contribution) -> list[str]:
    line = "missing" if each.line is None else str(each.line)
    rows = "masked" if each.num_examples is None else f"{each.num_examples:,}"
    norm = "masked" if each.norm is None else f"{each.norm:.4g}"
    norm = "in a sum" if each.is_summed and each.norm is None else norm
    return [str(each.server_round), each.silo, rows, norm, each.sha256[:16], line]


def _counts_text(contributions: Sequence[Contribution]) -> str:
    """Return how many updates of which silos the model was made from."""
    each = ", ".join(f"{silo} {count:,}" for silo, count in sorted(Counter(one.silo for one in contributions).items()))
    known = sum(one.line is not None for one in contributions)
    found = f"  from {len(contributions):,} updates ({each or 'none'}); {known:,} of them stand in their silos' ledgers"
    summed = sum(one.is_summed for one in contributions)
    return f"{found}; {summed:,} came in a hub's sum, as their silos say" if summed else found
