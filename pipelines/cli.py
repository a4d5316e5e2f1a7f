"""The command `ray-fed`. Every failure is one line on standard error and an exit code; see ray_fed/errors.py."""

import argparse
import difflib
import os
import re
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import NoReturn

from pipelines.bench.command import add_command as add_bench_command
from pipelines.cluster.command import add_commands as add_cluster_commands
from pipelines.fedtransfer.command import add_command as add_fedtransfer_command
from pipelines.leakage.command import add_command as add_leakage_commands
from pipelines.ledger.command import add_command as add_ledger_command
from pipelines.model_library.command import add_command as add_library_command
from pipelines.segmentation.command import add_command as add_segmentation_command
from pipelines.sweep.command import add_command as add_sweep_command
from ray_fed.errors import FedError

INTERRUPTED = 130

DESCRIPTION = """Train one model over many materials databases whose rows stay where they are.

Each database is a silo, a Ray actor next to its data; a coordinator actor averages parameters."""


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line, with the nearest known name, instead of a page of usage."""

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (\S+)", message)
        if unknown:
            name = unknown[1].split("=")[0]
            near = difflib.get_close_matches(name, self._known_flags(), n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}?" if near else f"see {self.prog} --help"
            message = f"unknown option {name}; {hint}"
        self.exit(2, f"{self.prog}: error: {message}\n")

    def _known_flags(self) -> list[str]:
        return [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments, prog = list(sys.argv[1:] if argv is None else argv), "ray-fed"
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup asked to be left alone
                signal.signal(number, _as_interrupt)
        options, prog = _parse(arguments)
        return options.pop("run")(options, arguments)
    except FedError as error:
        print(f"{prog}: error: {_one_line(error)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except OSError as error:
        remedy = "check that the place is there, may be written and has room" if error.filename else ""
        said = f"{error.filename}: {error.strerror}; {remedy}" if remedy else f"{type(error).__name__}: {error}"
        print(f"{prog}: error: {_one_line(said)}", file=sys.stderr)
        return 1
    except MemoryError as error:
        print(f"{prog}: error: not enough memory: {_one_line(error)}", file=sys.stderr)
        return 1


def _parse(arguments: list[str]) -> tuple[dict, str]:
    parser = OneLineParser(
        prog="ray-fed",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"ray-fed {version('ray-fed')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=OneLineParser)
    _formation_energy(commands)
    _resume(commands)
    _predict(commands)
    add_leakage_commands(commands)
    add_sweep_command(commands)
    add_library_command(commands)
    add_segmentation_command(commands)
    add_fedtransfer_command(commands)
    add_ledger_command(commands)
    add_bench_command(commands)
    add_cluster_commands(commands)
    if not arguments:
        parser.print_help()
        parser.exit(2)
    known, unknown = parser.parse_known_args(arguments)
    if "run" not in known:
        parser.error("give a command; see ray-fed --help")
    options = vars(known)
    chosen = options.pop("parser")
    _join_named_cluster(options, chosen)
    if unknown:
        chosen.error(f"unrecognized arguments: {' '.join(unknown)}")
    return options, chosen.prog


def _join_named_cluster(options: dict, chosen: argparse.ArgumentParser) -> None:
    """Let RAY_ADDRESS, which `ray job submit` sets, stand for an --address that was not given."""
    if "address" not in options and os.environ.get("RAY_ADDRESS") and any(a.dest == "address" for a in chosen._actions):
        options["address"] = os.environ["RAY_ADDRESS"]


def _formation_energy(commands) -> None:
    from pipelines.formation_energy.config import OPTION_GROUPS, FormationEnergyConfig
    from ray_fed.config import add_options

    parser = commands.add_parser(
        "formation-energy",
        help="multi-source training of a formation-energy network (Guo et al. 2022)",
        description="Train a formation-energy network [eV/atom] over several silos, and compare it with each silo "
        "alone and with all rows pooled.",
        allow_abbrev=False,
    )
    add_options(parser, FormationEnergyConfig, OPTION_GROUPS)
    parser.add_argument(
        "--set",
        dest="site_overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a field of the federation file: silos.NAME.FIELD=VALUE or test.FIELD=VALUE (repeatable)",
    )
    parser.set_defaults(run=_run_formation_energy, parser=parser)


def _run_formation_energy(options: dict, arguments: list[str]) -> int:
    if options.get("cohort", "ray") == "ray" and options.get("address", "local") == "local":
        from actors import forking

        is_embedded = options.get("data", "embedded") == "embedded" and "federation" not in options
        # Imports of the workers-to-be, and what all of them will need, begin while this process does its own.
        forking.start(*(["ray_fed.materials.model_crystals.crystals:enumerate_model_crystals"] if is_embedded else []))
    from pipelines.formation_energy.pipeline import run

    return run(options, ["ray-fed", *arguments])


def _resume(commands) -> None:
    parser = commands.add_parser(
        "resume",
        help="go on with a run that was interrupted, failed or killed",
        description="Continue a run from its last complete round; the result is that of a run that was not broken off.",
        allow_abbrev=False,
    )
    parser.add_argument("run_directory", metavar="RUN", help="folder of the run")
    parser.set_defaults(run=_run_resume, parser=parser)


def _run_resume(options: dict, arguments: list[str]) -> int:  # noqa: ARG001
    from pipelines.formation_energy.pipeline import resume

    return resume(options["run_directory"])


def _predict(commands) -> None:
    parser = commands.add_parser(
        "predict",
        help="predict new structures or formulas with the model of a run",
        description="Write a CSV with one line per entry of FILE: the prediction with its unit, or the reason why not.",
        allow_abbrev=False,
    )
    parser.add_argument("run_directory", metavar="RUN", help="folder of a run, or a .safetensors model file")
    parser.add_argument(
        "file", metavar="FILE", help="CSV/parquet/JSON table, folder of CIF/POSCAR files, or a structure file"
    )
    parser.add_argument("--out", default=None, help="CSV to write (default: FILE's name with .predictions.csv, here)")
    parser.add_argument("--model", default="federated", help="which model of the run (default: federated)")
    parser.set_defaults(run=_run_predict, parser=parser)


def _run_predict(options: dict, arguments: list[str]) -> int:  # noqa: ARG001
    from pipelines.predict import run

    return run(options["run_directory"], options["file"], options["model"], options["out"])


def _as_interrupt(signum: int, frame: object) -> NoReturn:  # noqa: ARG001
    raise KeyboardInterrupt


def _one_line(error: BaseException | str) -> str:
    return " ".join(str(error).split())


if __name__ == "__main__":
    sys.exit(main())
