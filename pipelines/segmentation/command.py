"""The command `ray-fed segment`. Importing this module imports nothing heavy."""


def add_command(commands) -> None:
    """Register the command with argparse's subparsers."""
    from pipelines.segmentation.config import SegmentConfig
    from ray_fed.config import add_options

    parser = commands.add_parser(
        "segment",
        help="find the grains of new micrographs with the model of a run",
        description="Write, for each image, its boundary mask and an overlay, and for all a table of grains and one of "
        "fields, with ASTM grain-size numbers where the pixel size is given.",
        allow_abbrev=False,
    )
    parser.add_argument("run_directory", metavar="RUN", help="folder of a run, or a .safetensors model file")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files or folders of images")
    add_options(parser, SegmentConfig)
    parser.set_defaults(run=_run, parser=parser)


def _run(options: dict, arguments: list[str]) -> int:  # noqa: ARG001
    from pipelines.segmentation.config import SegmentConfig
    from pipelines.segmentation.pipeline import run

    run_directory, images = options.pop("run_directory"), options.pop("images")
    return run(run_directory, images, SegmentConfig(**options))
