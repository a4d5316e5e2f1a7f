"""The commands `ray-fed leakage` and `ray-fed audit`. Importing this module imports nothing heavy."""


def add_command(commands) -> None:
    """Register both commands with argparse's subparsers."""
    _leakage(commands)


def _leakage(commands) -> None:
    from pipelines.leakage.config import OPTION_GROUPS, LeakageConfig
    from ray_fed.config import add_options

    parser = commands.add_parser(
        "leakage",
        help="what a gradient gives away: DLG, iDLG, WDLG and stronger attacks side by side",
        description="Attack single gradients of image classifiers with equal budgets and judge the claims of WDLG "
        "(Int. J. Intell. Syst. 2022).",
        allow_abbrev=False,
    )
    add_options(parser, LeakageConfig, OPTION_GROUPS)
    parser.set_defaults(run=_run_leakage, parser=parser)


def _run_leakage(options: dict, arguments: list[str]) -> int:
    from pipelines.leakage.pipeline import run

    return run(options, ["ray-fed", *arguments])
