"""What a run guarantees about privacy, for its summary and its model card."""

from pipelines import update_options
from pipelines.formation_energy.experiment import TrainingExperiment
from ray_fed.federation.rounds.job import EPSILON

NOT_COVERED = "numbers of rows, the feature scaler (means and variances of columns), held-out errors"


def privacy_statement(experiment: TrainingExperiment) -> dict[str, object]:
    """Return `privacy.level`, `.epsilon`, `.delta` and what they do not cover; nothing where no noise was asked for."""
    spent = [record.metrics[EPSILON] for record in experiment.federated_records() if EPSILON in record.metrics]
    account = experiment.setup.config.account(1)
    if account is None:
        return {}
    return update_options.privacy_statement(account, spent[-1] if spent else 0.0, NOT_COVERED)
