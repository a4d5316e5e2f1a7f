"""From the configuration to jobs: which attack, on which images, under which conditions."""

from collections.abc import Iterator
from dataclasses import replace

from pipelines.leakage.config import LeakageConfig
from ray_fed.leakage.attacks import Attack, attack_named
from ray_fed.leakage.distances import SinkhornSettings
from ray_fed.leakage.own_network import OwnNetwork
from ray_fed.leakage.study import AttackJob, drawn_images

COMPARE, RATES, BATCH, DEFENCE = "compare", "learning_rate", "batch", "defence"
NETWORKS, TRAINED = "networks", "trained"
FEW = 16
"""Problems of the side studies: conditions, not methods, are compared there."""
RATE_ATTACKS = ("dlg", "idlg", "wdlg")
"""The methods of the paper's learning-rate study, by L-BFGS."""
DESCENT_ATTACKS = ("idlg_descent", "wdlg_descent")
"""The same by plain descent, as the paper's Algorithm 1 has it."""
OTHER_NETWORKS = ("lenet_relu", "mlp", "resnet", "unet")
NETWORK_ATTACKS = ("analytic", "rgap", "ours", "dlg", "idlg", "wdlg", "cosine", "l2_grey")
"""Of the study of other networks."""
TRAINED_ATTACKS = ("rgap", "layers", "ours", "idlg", "wdlg", "wdlg_anchored", "wdlg_debiased", "cosine", "l2_grey")
"""Of the study of networks that have learned."""


def study_jobs(config: LeakageConfig) -> list[AttackJob]:
    """Return all jobs, the longest first so that no core waits at the end. DataError for data that cannot be used."""
    for data in config.data:
        drawn_images(data, config.wanted_images, config.seed)
    jobs = [
        *(_compare(config) if "compare" in config.wanted_studies else ()),
        *(_rates(config) if "learning_rate" in config.wanted_studies else ()),
        *(_networks(config) if "networks" in config.wanted_studies else ()),
        *(_trained(config) if TRAINED in config.wanted_studies else ()),
        *(_batches(config) if "batch" in config.wanted_studies else ()),
        *(_defences(config) if "defence" in config.wanted_studies else ()),
    ]
    return sorted(jobs, key=lambda job: -work(job))


def configured(config: LeakageConfig, name: str) -> Attack:
    """Return an attack with the Sinkhorn options of the configuration, which are those of wdlg as published."""
    attack = attack_named(name)
    if name != "wdlg":
        return attack
    settings = SinkhornSettings(
        config.epsilon, config.sinkhorn_iterations, config.sinkhorn_threshold, config.sinkhorn_power, config.anchor,
        config.unrolled, config.points, config.normalise, config.debias,
    )  # fmt: skip
    return replace(
        attack, sinkhorn=settings, optimizer=config.wdlg_optimizer, start=config.wdlg_start,
        learning_rate=config.wdlg_rate, stops_as_torch=config.wdlg_optimizer == "lbfgs",
    )  # fmt: skip


def snapshots(budget: int) -> tuple[int, ...]:
    """Return the evaluations shown in the figures: 2, 5, 10, 20, 50, ... up to the budget."""
    steps = [factor * 10**power for power in range(6) for factor in (1, 2, 5)]
    return (*(step for step in steps[1:] if step < budget), budget)


def _compare(config: LeakageConfig) -> Iterator[AttackJob]:
    for data in config.data:
        for name in config.wanted_attacks:
            attack = configured(config, name)
            # What is algebra alone needs no budget: it counts at every one.
            for budget in config.wanted_budgets[:1] if attack.is_algebra else config.wanted_budgets:
                job = replace(
                    _job(config, COMPARE, data, attack), budget=budget, snapshots=snapshots(budget),
                    batch_size=config.batch_size, local_steps=config.steps, minibatch=config.minibatch,
                    local_optimizer=config.local_optimizer, local_rate=config.local_rate,
                )  # fmt: skip
                yield from _parts(job, config.wanted_images // config.batch_size, config.tasks)


def rates_data(config: LeakageConfig) -> str:
    """Return the images of the learning-rate study: the paper's Fig. 5 is of LFW."""
    return "faces" if "faces" in config.data else config.data[-1]


def _rates(config: LeakageConfig) -> Iterator[AttackJob]:
    data = rates_data(config)
    for rate in config.learning_rates:
        for name in (name for name in RATE_ATTACKS if name in config.wanted_attacks):
            yield from _rate(config, data, name, rate)
    for rate in config.descent_rates:
        for name in (name for name in DESCENT_ATTACKS if name in config.wanted_attacks):
            yield from _rate(config, data, name, rate)


def _rate(config: LeakageConfig, data: str, name: str, rate: float) -> Iterator[AttackJob]:
    attack = replace(configured(config, name), learning_rate=rate)
    problems = FEW if config.full else FEW // 2
    yield from _parts(_job(config, RATES, data, attack), min(problems, config.wanted_images), FEW)


def _networks(config: LeakageConfig) -> Iterator[AttackJob]:
    """The other networks, on the first images that have an even height and width (a U-Net needs them)."""
    sizes = {data: drawn_images(data, config.wanted_images, config.seed).shape[1:] for data in config.data}
    data = next((data for data, size in sizes.items() if not any(side % 2 for side in size)), config.data[0])
    for model in OTHER_NETWORKS:
        for name in NETWORK_ATTACKS:
            job = replace(_job(config, NETWORKS, data, configured(config, name)), model=model)
            yield from _parts(job, min(FEW, config.wanted_images), FEW)


def _trained(config: LeakageConfig) -> Iterator[AttackJob]:
    for name in TRAINED_ATTACKS:
        job = replace(_job(config, TRAINED, config.data[0], configured(config, name)), trained=config.trained_steps)
        yield from _parts(job, min(FEW, config.wanted_images), FEW)


def _batches(config: LeakageConfig) -> Iterator[AttackJob]:
    for size in config.batch_sizes:
        for steps in config.local_steps:
            for name in ("dlg", "idlg", "cosine", "ours"):
                job = replace(
                    _job(config, BATCH, config.data[0], attack_named(name)), batch_size=size, local_steps=steps
                )
                problems = min(FEW, config.wanted_images) // size
                if problems and (steps == 1 or name == "ours"):
                    yield from _parts(job, problems, FEW)


def _defences(config: LeakageConfig) -> Iterator[AttackJob]:
    for defence in ("", *config.defences):
        for name in ("idlg", "ours"):
            job = replace(_job(config, DEFENCE, config.data[0], attack_named(name)), defence=defence)
            yield from _parts(job, min(FEW, config.wanted_images), FEW)


def _job(config: LeakageConfig, group: str, data: str, attack: Attack) -> AttackJob:
    return AttackJob(
        "", group, data, config.model, attack, (), config.wanted_images, config.budget, config.seed,
        restarts=config.restarts, output_bias=config.output_bias, own=own_network(config), statistics=config.statistics,
    )  # fmt: skip


def own_network(config: LeakageConfig) -> OwnNetwork | None:
    """Return the user's network, if there is one."""
    if not config.is_own:
        return None
    return OwnNetwork(config.model, config.checkpoint or "", config.model_options, config.mode)


def _parts(job: AttackJob, problems: int, at_once: int) -> Iterator[AttackJob]:
    for start in range(0, problems, at_once):
        numbers = tuple(range(start, min(problems, start + at_once)))
        yield replace(job, problems=numbers, key=_key(job, start))


def _key(job: AttackJob, start: int) -> str:
    parts = [
        job.group,
        *([job.model] if job.group == NETWORKS else []),
        job.data.replace("/", "_"),
        job.attack.name,
        f"{job.attack.learning_rate:g}",
        *([str(job.budget)] if job.group == COMPARE else []),
    ]
    parts += [f"b{job.batch_size}", f"e{job.local_steps}", job.defence or "plain", str(start)]
    return "-".join(parts)


def work(job: AttackJob) -> float:
    """Return the rough relative cost of a job: an evaluation costs its operations, each problem, and each pixel."""
    images = drawn_images(job.data, job.images, job.seed)
    pixels = images.images[0].size * job.batch_size
    heavy = {"rows": 3.0 * (1 + 2 * job.attack.sinkhorn.debias), "sorted": 2.0}.get(job.attack.distance, 1.0)
    each = 0.03 + 1e-4 * pixels
    evaluations = 30 if job.attack.is_algebra else job.budget  # solving costs about as much as a few evaluations
    return heavy * job.local_steps * job.restarts * evaluations * (1 + len(job.problems) * each)
