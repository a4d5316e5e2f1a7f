"""The commands `ray-fed ledger verify` and `ray-fed ledger trace`. Importing this module imports nothing heavy."""


def add_command(commands) -> None:
    """Register the command with argparse's subparsers."""
    parser = commands.add_parser(
        "ledger",
        help="prove what left the silos of a run, and where a model came from",
        description="Check the signed, hash-chained ledgers of a run.",
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", parser_class=type(parser), required=True)
    verify = actions.add_parser(
        "verify",
        help="check that no line was changed, dropped or moved, and that silos and coordinator agree",
        description="Check chains and signatures of all ledgers of a run, and that every message the coordinator "
        "received is one that its silo wrote down. Exit code 1 when anything is wrong.",
        allow_abbrev=False,
    )
    verify.add_argument("run_directory", metavar="RUN", help="folder of the run")
    verify.add_argument(
        "--silo-ledgers",
        metavar="FOLDER",
        default=None,
        help="ledgers fetched from the silos themselves, SILO.jsonl or SILO/*.jsonl, instead of those handed over "
        "(default: RUN/ledger/silos)",
    )
    verify.set_defaults(run=_verify, parser=verify)
    trace = actions.add_parser(
        "trace",
        help="show from which updates, of which silos, a model was made",
        description="Find a model in the coordinator's ledger by the hash of its weights, and go back to the first "
        "round: each update with its hash in the ledger of its silo.",
        allow_abbrev=False,
    )
    trace.add_argument("run_directory", metavar="RUN", help="folder of the run")
    trace.add_argument("model", metavar="MODEL", help="a .safetensors file of this run, published anywhere")
    trace.add_argument("--rounds", type=int, default=5, metavar="INT", help="rounds to show in full (default: 5)")
    trace.set_defaults(run=_trace, parser=trace)
    key = actions.add_parser(
        "key",
        help="print the public key of a silo of this machine",
        description="Print the public key of a silo whose ledger stands on this machine (site.yaml: ledger); it is "
        "made where there is none. Other owners write it under 'partners' in their site.yaml.",
        allow_abbrev=False,
    )
    key.add_argument("silo", metavar="SILO", help="name of the silo in its federation file")
    key.set_defaults(run=_key, parser=key)


def _verify(options: dict, arguments: list[str]) -> int:  # noqa: ARG001
    from pipelines.ledger.verify import run

    return run(options["run_directory"], options["silo_ledgers"])


def _trace(options: dict, arguments: list[str]) -> int:  # noqa: ARG001
    from pipelines.ledger.trace import run

    return run(options["run_directory"], options["model"], options["rounds"])


def _key(options: dict, arguments: list[str]) -> int:  # noqa: ARG001
    from pipelines.ledger.key import run

    return run(options["silo"])
