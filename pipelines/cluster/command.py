"""The commands `ray-fed cluster certs`, `ray-fed doctor` and `ray-fed attach`. Importing this imports nothing heavy."""


def add_commands(commands) -> None:
    """Register the commands with argparse's subparsers."""
    _cluster(commands)
    _doctor(commands)
    _attach(commands)


def _cluster(commands) -> None:
    parser = commands.add_parser(
        "cluster",
        help="make what a cluster of institutions needs: a private authority and certificates",
        description="Prepare a cluster; how to launch one is in cluster/README.md.",
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", parser_class=type(parser), required=True)
    certs = actions.add_parser(
        "certs",
        help="a certificate for each machine, signed by an authority of your own",
        description="Make a private certificate authority, once, and a folder with certificate and key for each "
        "machine, to be brought there as ~/ray-fed/tls. The authority's key stays where it was made.",
        allow_abbrev=False,
    )
    certs.add_argument(
        "nodes",
        nargs="*",
        metavar="NAME=ADDRESS[,ADDRESS]",
        help="machines, with all addresses others reach them by; none: only the authority is made",
    )
    certs.add_argument("--out", default="certs", metavar="FOLDER", help="where the folders are made (default: certs)")
    certs.add_argument("--days", type=int, default=365, metavar="INT", help="how long they count (default: 365)")
    certs.add_argument("--renew", action="store_true", help="replace certificates and keys that are there")
    certs.add_argument(
        "--authority", default=None, metavar="FOLDER", help="where ca.crt and ca.key are or will be (default: --out)"
    )
    certs.set_defaults(run=_run_certs, parser=certs)


def _doctor(commands) -> None:
    from pipelines.cluster.config import DoctorConfig
    from ray_fed.config import add_options

    parser = commands.add_parser(
        "doctor",
        help="check a running cluster before a run",
        description="Visit every node: versions, memory, disk, clock, protection, the way there and back, and whether "
        "the silos of a federation file find their site, their GPUs and their data. Exit code 1 when a run would "
        "break or the cluster is open to strangers.",
        allow_abbrev=False,
    )
    add_options(parser, DoctorConfig)
    parser.set_defaults(run=_run_doctor, parser=parser)


def _attach(commands) -> None:
    parser = commands.add_parser(
        "attach",
        help="show the progress of a run that was started elsewhere or lost its terminal",
        description="Show the rounds of a run as they come, until it ends. Ctrl-C leaves the run alone.",
        allow_abbrev=False,
    )
    parser.add_argument("run_directory", metavar="RUN", help="folder of the run, on the machine that keeps it")
    parser.set_defaults(run=_run_attach, parser=parser)


def _run_certs(options: dict, arguments: list[str]) -> int:  # noqa: ARG001
    from pipelines.cluster.certs import run

    return run(options["nodes"], options["out"], options["days"], options["renew"], options["authority"])


def _run_doctor(options: dict, arguments: list[str]) -> int:  # noqa: ARG001
    from pipelines.cluster.doctor import run

    return run(options)


def _run_attach(options: dict, arguments: list[str]) -> int:  # noqa: ARG001
    from pipelines.cluster.attach import run

    return run(options["run_directory"])
