"""The command `ray-fed`. Every failure is one line on standard error and an exit code; see ray_fed/errors.py."""

import argparse
import difflib
import os
import re
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, NoReturn

from pipelines.commands import COMMANDS, Command
from ray_fed.errors import FedError
from ray_fed.materials.databases.addresses import redacted

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
        self.exit(2, f"{self.prog}: error: {redacted(message)}\n")

    def _known_flags(self) -> list[str]:
        return [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]


class CommandParser(OneLineParser):
    """Reads one command; its options are looked up, and their module is imported, when it is chosen."""

    def __init__(self, command: Command, **settings: Any):
        said = command.description or f"{command.summary[0].upper()}{command.summary[1:]}."
        super().__init__(description=said, allow_abbrev=False, **settings)
        self.command = command

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.command.add_options(self, args or ())
        if self.command.run:
            self.set_defaults(parser=self)
        return super().parse_known_args(args, namespace)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments, prog = list(sys.argv[1:] if argv is None else argv), "ray-fed"
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup asked to be left alone
                signal.signal(number, _as_interrupt)
        command, options, prog = _parse(arguments)
        return command.carry_out(options, ("ray-fed", *arguments))
    except FedError as error:
        # What a silo's log on this disk says of it comes with it as notes.
        print(f"{prog}: error: {redacted(_one_line('; '.join([str(error), *_notes_of(error)])))}", file=sys.stderr)
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


def _parse(arguments: list[str]) -> tuple[Command, dict[str, Any], str]:
    """Return the command, what it was given, and its name for messages."""
    parser = OneLineParser(
        prog="ray-fed",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"ray-fed {version('ray-fed')}")
    _add_commands(parser)
    if not arguments:
        parser.print_help()
        parser.exit(2)
    known, unknown = parser.parse_known_args(arguments)
    options = vars(known)
    chosen = options.pop("parser", None)
    if chosen is None:
        parser.error("give a command; see ray-fed --help")
    _join_named_cluster(options, chosen)
    if unknown:
        chosen.error(f"unrecognized arguments: {' '.join(unknown)}")
    return chosen.command, options, chosen.prog


def _add_commands(parser: argparse.ArgumentParser) -> None:
    groups = {"": parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=CommandParser)}
    for command in COMMANDS:
        group, _, name = command.name.rpartition(" ")
        made = groups[group].add_parser(name, help=command.summary, command=command)
        if command.run is None:
            groups[command.name] = made.add_subparsers(title="actions", metavar="ACTION", required=True)


def _join_named_cluster(options: dict[str, Any], chosen: argparse.ArgumentParser) -> None:
    """Let RAY_ADDRESS, which `ray job submit` sets, stand for an --address that was not given."""
    if "address" not in options and os.environ.get("RAY_ADDRESS") and any(a.dest == "address" for a in chosen._actions):
        options["address"] = os.environ["RAY_ADDRESS"]


def _as_interrupt(signum: int, frame: object) -> NoReturn:  # noqa: ARG001
    raise KeyboardInterrupt


def _notes_of(error: BaseException) -> list[str]:
    return list(getattr(error, "__notes__", ()))


def _one_line(error: BaseException | str) -> str:
    return " ".join(str(error).split())


if __name__ == "__main__":
    sys.exit(main())
