"""Who was there when a run began, who came later, and what its folder keeps of it.

What all silos start from, the scaler and the number of steps in an epoch, comes from those that were there: the
*founders*. A run that is resumed needs them again, to be the same; for the others it waits as it did before.
"""

from dataclasses import replace

from pipelines.fingerprints import JOINED
from pipelines.training.setup import Setup
from ray_fed.federation.coordinator import Agreement
from ray_fed.federation.rounds.job import RoundRecord
from ray_fed.federation.rounds.machine import StartRules
from ray_fed.reporting.run_directory import RunDirectory


def start_rules(setup: Setup) -> StartRules:
    """Return whom the run waits for before it begins, or goes on."""
    config = setup.config
    late = set(setup.training) - set(setup.founders) if config.late_silos else set()
    return StartRules(config.start_timeout, frozenset(late), config.min_fit_clients)


def founded(setup: Setup, agreement: Agreement) -> Setup:
    """Return the setup with its founders: those of the run that is resumed, or those that are there now."""
    there = tuple(name for name in setup.training if name in agreement.silos)
    return setup if setup.founders else replace(setup, founders=there)


def with_founders(setup: Setup, directory: RunDirectory) -> Setup:
    """Return the setup of a run that is resumed, with the founders its folder names."""
    if not setup.config.late_silos or not directory.data_path.is_file():
        return setup
    then = {str(entry["silo"]) for entry in directory.read_data() if JOINED not in entry}
    return replace(setup, founders=tuple(name for name in setup.training if name in then))


def admitted(agreement: Agreement, record: RoundRecord) -> Agreement:
    """Return the agreement with the silos that came in a round."""
    came = {description.silo: description for description in record.joined}
    when = f"{record.job}, round {record.server_round}"
    return replace(
        agreement, silos={**agreement.silos, **came}, joined={**agreement.joined, **dict.fromkeys(came, when)}
    )


def rejoined(agreement: Agreement, setup: Setup, directory: RunDirectory) -> Agreement:
    """Return the agreement of a resumed run, in which silos are no founders though they are there."""
    then = {str(entry["silo"]): str(entry[JOINED]) for entry in directory.read_data() if JOINED in entry}
    late = [name for name in setup.training if name in agreement.silos and name not in setup.founders]
    return replace(agreement, joined={name: then.get(name, "when the run was resumed") for name in late})
