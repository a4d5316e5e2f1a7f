"""From the configuration to jobs: which attack, on which images, under which conditions."""

from collections.abc import Iterator
from dataclasses import replace

from pipelines.leakage.config import LeakageConfig
from ray_fed.leakage.attacks import Attack, attack_named
from ray_fed.leakage.study import AttackJob, drawn_images

COMPARE, RATES, BATCH, DEFENCE, NETWORKS = "compare", "learning_rate", "batch", "defence", "networks"
FEW = 16
"""Problems of the side studies: conditions, not methods, are compared there."""
RATE_ATTACKS = ("dlg", "idlg", "wdlg")
"""The methods of the paper's learning-rate study."""
OTHER_NETWORKS, NETWORK_ATTACKS = ("lenet_relu", "mlp", "resnet", "unet"), ("dlg", "idlg", "wdlg", "cosine", "ours")
"""Of the study of other networks."""


def study_jobs(config: LeakageConfig) -> list[AttackJob]:
    """Return all jobs, the longest first so that no core waits at the end. DataError for data that cannot be used."""
    for data in config.data:
        drawn_images(data, config.images, config.seed)
    jobs = [
        *(_compare(config) if "compare" in config.studies else ()),
        *(_rates(config) if "learning_rate" in config.studies else ()),
        *(_networks(config) if "networks" in config.studies else ()),
        *(_batches(config) if "batch" in config.studies else ()),
        *(_defences(config) if "defence" in config.studies else ()),
    ]
    return sorted(jobs, key=lambda job: -work(job))


def configured(config: LeakageConfig, name: str) -> Attack:
    """Return an attack with the Sinkhorn options of the configuration, which are those of wdlg as published."""
    attack = attack_named(name)
    if name != "wdlg":
        return attack
    settings = replace(
        attack.sinkhorn,
        epsilon=config.epsilon,
        max_iterations=config.sinkhorn_iterations,
        threshold=config.sinkhorn_threshold,
    )
    return replace(attack, sinkhorn=settings)


def snapshots(budget: int) -> tuple[int, ...]:
    """Return the evaluations shown in the figures: 2, 5, 10, 20, 50, ... up to the budget."""
    steps = [factor * 10**power for power in range(6) for factor in (1, 2, 5)]
    return (*(step for step in steps[1:] if step < budget), budget)


def _compare(config: LeakageConfig) -> Iterator[AttackJob]:
    for data in config.data:
        for name in config.attacks:
            job = _job(config, COMPARE, data, configured(config, name))
            yield from _parts(replace(job, snapshots=snapshots(config.budget)), config.images, config.tasks)


def rates_data(config: LeakageConfig) -> str:
    """Return the images of the learning-rate study: the paper's Fig. 5 is of LFW."""
    return "faces" if "faces" in config.data else config.data[-1]


def _rates(config: LeakageConfig) -> Iterator[AttackJob]:
    data = rates_data(config)
    for rate in config.learning_rates:
        for name in (name for name in RATE_ATTACKS if name in config.attacks):
            attack = replace(configured(config, name), learning_rate=rate)
            yield from _parts(_job(config, RATES, data, attack), min(FEW // 2, config.images), FEW // 2)


def _networks(config: LeakageConfig) -> Iterator[AttackJob]:
    """The other networks, on the first images that have an even height and width (a U-Net needs them)."""
    sizes = {data: drawn_images(data, config.images, config.seed).shape[1:] for data in config.data}
    data = next((data for data, size in sizes.items() if not any(side % 2 for side in size)), config.data[0])
    for model in OTHER_NETWORKS:
        for name in NETWORK_ATTACKS:
            job = replace(_job(config, NETWORKS, data, configured(config, name)), model=model)
            yield from _parts(job, min(FEW, config.images), FEW)


def _batches(config: LeakageConfig) -> Iterator[AttackJob]:
    for size in config.batch_sizes:
        for steps in config.local_steps:
            for name in ("dlg", "idlg", "ours"):
                job = replace(
                    _job(config, BATCH, config.data[0], attack_named(name)), batch_size=size, local_steps=steps
                )
                problems = min(FEW, config.images) // size
                if problems and (steps == 1 or name == "ours"):
                    yield from _parts(job, problems, FEW)


def _defences(config: LeakageConfig) -> Iterator[AttackJob]:
    for defence in ("", *config.defences):
        for name in ("idlg", "ours"):
            job = replace(_job(config, DEFENCE, config.data[0], attack_named(name)), defence=defence)
            yield from _parts(job, min(FEW, config.images), FEW)


def _job(config: LeakageConfig, group: str, data: str, attack: Attack) -> AttackJob:
    return AttackJob(
        "", group, data, config.model, attack, (), config.images, config.budget, config.seed,
        restarts=config.restarts, output_bias=config.output_bias,
    )  # fmt: skip


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
    ]
    parts += [f"b{job.batch_size}", f"e{job.local_steps}", job.defence or "plain", str(start)]
    return "-".join(parts)


def work(job: AttackJob) -> float:
    """Return the rough relative cost of a job: an evaluation costs its operations, each problem, and each pixel."""
    images = drawn_images(job.data, job.images, job.seed)
    pixels = images.images[0].size * job.batch_size
    heavy = {"rows": 3.0, "sorted": 2.0}.get(job.attack.distance, 1.0)
    each = 0.03 + 1e-4 * pixels
    return heavy * job.local_steps * job.restarts * job.budget * (1 + len(job.problems) * each)
