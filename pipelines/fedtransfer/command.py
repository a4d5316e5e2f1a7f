"""The command `ray-fed fedtransfer`. Importing this module imports nothing heavy."""


def add_command(commands) -> None:
    """Register the command with argparse's subparsers."""
    from pipelines.fedtransfer.config import OPTION_GROUPS, FedTransferConfig
    from ray_fed.config import add_options

    parser = commands.add_parser(
        "fedtransfer",
        help="segmentation of micrographs with style generators that move between silos",
        description="Train a label -> image generator in every silo, let the generators (never images) move, and "
        "federate a U-Net on real and synthetic images; compare with training alone, pooled and cheaper exchanges.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--quick", dest="preset", action="store_const", const="quick", default=_absent(), help="same as --preset quick"
    )
    add_options(parser, FedTransferConfig, OPTION_GROUPS)
    parser.set_defaults(run=_run, parser=parser)


def _absent() -> str:
    """An option not given stays out of the namespace."""
    import argparse

    return argparse.SUPPRESS


def _run(options: dict, arguments: list[str]) -> int:
    if options.get("cohort", "ray") == "ray" and options.get("address", "local") == "local":
        from actors import forking

        forking.start()  # imports of the workers-to-be begin while this process does its own
    from pipelines.fedtransfer.pipeline import run

    return run(options, ["ray-fed", *arguments])
