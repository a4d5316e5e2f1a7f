"""The commands `ray-fed leakage` and `ray-fed audit`. Importing this module imports nothing heavy."""


def add_command(commands) -> None:
    """Register both commands with argparse's subparsers."""
    _leakage(commands)
    _audit(commands)


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


def _audit(commands) -> None:
    from pipelines.leakage.audit_config import AuditConfig
    from ray_fed.config import add_options

    parser = commands.add_parser(
        "audit",
        help="what the messages of your own federation give away",
        description="Replay, inside the silos, what a coordinator receives in a run or a federation, attack it, and "
        "say per silo what is reconstructed and what stops it. A silo is audited only if its owner's policy allows it.",
        allow_abbrev=False,
    )
    parser.add_argument("target", metavar="RUN|FEDERATION", help="folder of a run, or a federation file")
    add_options(parser, AuditConfig)
    parser.set_defaults(run=_run_audit, parser=parser)


def _run_audit(options: dict, arguments: list[str]) -> int:
    from pipelines.leakage.audit_pipeline import run

    return run(options.pop("target"), options, ["ray-fed", *arguments])
