"""`ray-fed bench`: its options, light enough to be imported at every start."""


def add_command(commands) -> None:
    """Add the command to the parser."""
    from pipelines.bench.config import BenchConfig
    from ray_fed.config import add_options

    parser = commands.add_parser(
        "bench",
        help="how fast this machine trains, averages and exchanges, as ratios to plain loops",
        description="Measure the runtime against the loops everybody writes first, in one run on this machine.",
        allow_abbrev=False,
    )
    add_options(parser, BenchConfig)
    parser.set_defaults(run=_run, parser=parser)


def _run(options: dict, arguments: list[str]) -> int:  # noqa: ARG001
    from actors import forking
    from pipelines.bench.config import BenchConfig

    config = BenchConfig(**options)
    if {"exchange", "frequency"} & set(config.parts):
        forking.start()
    from pipelines.bench.pipeline import run

    return run(config)
