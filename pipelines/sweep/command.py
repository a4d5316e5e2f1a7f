"""`ray-fed sweep`: its options, light enough to be imported at every start."""

import argparse
import shlex


def add_command(commands) -> None:
    """Add the command to the parser."""
    from pipelines.formation_energy.config import OPTION_GROUPS, FormationEnergyConfig
    from pipelines.sweep.config import SweepConfig
    from ray_fed.config import add_options, field_documentation

    parser = commands.add_parser(
        "sweep",
        help="many runs over the same silos with Ray Tune: communication frequency, learning rate, any other field",
        description="Run Ray Tune over fields of a pipeline. The silos open their data once and serve all trials.",
        allow_abbrev=False,
        conflict_handler="resolve",
    )
    parser.add_argument("pipeline", nargs="?", default="formation-energy", choices=["formation-energy"])
    parser.add_argument("--resume", metavar="RUN", default=None, help="go on with a sweep that was broken off")
    add_options(parser, SweepConfig)
    for name in ("grid", "sample"):  # again: once per field, not the last one only
        parser.add_argument(
            f"--{name}", action="extend", type=lambda text: text.split(","), default=argparse.SUPPRESS,
            metavar="FIELD=...", help=field_documentation(SweepConfig)[name],
        )  # fmt: skip
    add_options(parser, FormationEnergyConfig, OPTION_GROUPS)
    parser.set_defaults(run=_run, parser=parser)


def _run(options: dict, arguments: list[str]) -> int:
    del options["pipeline"]
    from actors import forking

    if options.get("address", "local") == "local":
        forking.start()
    from pipelines.sweep.pipeline import run

    options |= {name: tuple(options[name]) for name in ("grid", "sample") if name in options}
    return run(options, shlex.join(["ray-fed", *arguments]))
