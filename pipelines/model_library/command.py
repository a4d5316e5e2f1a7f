"""`ray-fed library ...`: the options; what they do is imported when they are used."""

import argparse
from pathlib import Path
from typing import Any


def add_command(commands: Any) -> None:
    """Add `library` with its sub-commands to the command line."""
    parser = commands.add_parser(
        "library",
        help="a library of pretrained models: build, query, transfer (Yamada et al. 2019)",
        description="Build, query and transfer from a library of pretrained models (XenonPy.MDL's idea).",
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True, parser_class=type(parser))
    for add in (
        _build,
        _demo,
        _query,
        _show,
        _transfer,
        _push,
        _pull,
        _verify,
        _diff,
        _reindex,
        _deprecate,
        _predict,
        _add,
    ):
        add(actions)


def _action(actions: Any, name: str, summary: str, run: Any, library: bool = True) -> Any:
    parser = actions.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.",
                                allow_abbrev=False)  # fmt: skip
    if library:
        parser.add_argument("--library", default="library", help="folder of the library (default: library)")
    parser.set_defaults(run=run, parser=parser)
    return parser


def _build(actions: Any) -> None:
    from pipelines.model_library.config import BuildConfig
    from ray_fed.config import add_options

    def run(options: dict, arguments: list[str]) -> int:  # noqa: ARG001
        from pipelines.model_library.build import build

        return build(BuildConfig(**options))

    add_options(_action(actions, "build", "train thousands of models; goes on where it stopped", run, False),
                BuildConfig)  # fmt: skip


def _transfer(actions: Any) -> None:
    from pipelines.model_library.config import TransferConfig
    from ray_fed.config import add_options

    def run(options: dict, arguments: list[str]) -> int:
        from pipelines.model_library.transfer import run as run_transfer

        return run_transfer(TransferConfig(**options), ["ray-fed", *arguments])

    parser = _action(actions, "transfer", "the paper's protocol and an honest one, side by side", run, False)
    add_options(parser, TransferConfig)


def _demo(actions: Any) -> None:
    def run(options: dict, arguments: list[str]) -> int:
        from pipelines.model_library.demo import demo

        return demo(options["out"], options.get("address", "local"), ["ray-fed", *arguments])

    parser = _action(
        actions, "demo", "build, query, move and transfer on embedded data, in under 3 minutes", run, False
    )
    parser.add_argument("--out", default=None, help="folder (default: runs/library-demo-DATE-TIME)")
    parser.add_argument(
        "--address", default=argparse.SUPPRESS, help="Ray cluster (default: RAY_ADDRESS where it is set, else local)"
    )


def _query(actions: Any) -> None:
    def run(options: dict, arguments: list[str]) -> int:  # noqa: ARG001
        from pipelines.model_library.catalogue import query

        return query(options["library"], options["query"], options["columns"], options["csv"], options["failures"])

    parser = _action(
        actions, "query", 'list models, e.g. "property = band_gap and mae < 0.5 order by mae limit 10"', run
    )
    parser.add_argument("query", nargs="?", default="", help="conditions; all models if not given")
    parser.add_argument("--columns", default=None, help="comma-separated fields; XenonPy's names are understood")
    parser.add_argument("--csv", default=None, metavar="FILE", help="write the answer to a CSV file")
    parser.add_argument("--failures", action="store_true", help="also list models that failed, with their reason")


def _show(actions: Any) -> None:
    def run(options: dict, arguments: list[str]) -> int:  # noqa: ARG001
        from pipelines.model_library.catalogue import show

        return show(options["library"], options["id"])

    parser = _action(actions, "show", "print the card of a model", run)
    parser.add_argument("id", help="id of a model, or its first digits")


def _push(actions: Any) -> None:
    def run(options: dict, arguments: list[str]) -> int:  # noqa: ARG001
        from pipelines.model_library.catalogue import push

        return push(options["library"], options["to"], options["query"])

    parser = _action(actions, "push", "copy models to another place", run)
    parser.add_argument("to", help="folder, or any URL that fsspec knows")
    parser.add_argument("query", nargs="?", default="", help="which models; all if not given")


def _pull(actions: Any) -> None:
    def run(options: dict, arguments: list[str]) -> int:  # noqa: ARG001
        from pipelines.model_library.catalogue import pull

        return pull(options["library"], options["origin"], options["ids"])

    parser = _action(actions, "pull", "copy models from another place; every hash is checked", run)
    parser.add_argument("origin", help="folder, or any URL that fsspec knows")
    parser.add_argument("ids", nargs="*", help="ids, or their first digits; all models if none are given")


def _verify(actions: Any) -> None:
    def run(options: dict, arguments: list[str]) -> int:  # noqa: ARG001
        from pipelines.model_library.catalogue import verify

        return verify(options["library"])

    _action(actions, "verify", "read every file of a library and check every hash", run)


def _diff(actions: Any) -> None:
    def run(options: dict, arguments: list[str]) -> int:  # noqa: ARG001
        from pipelines.model_library.catalogue import diff

        return diff(options["library"], options["other"])

    parser = _action(actions, "diff", "list the models that only one of two libraries has", run)
    parser.add_argument("other", help="folder, or any URL that fsspec knows")


def _reindex(actions: Any) -> None:
    def run(options: dict, arguments: list[str]) -> int:  # noqa: ARG001
        from pipelines.model_library.catalogue import reindex

        return reindex(options["library"])

    _action(actions, "reindex", "make the index again from the cards", run)


def _deprecate(actions: Any) -> None:
    def run(options: dict, arguments: list[str]) -> int:  # noqa: ARG001
        from pipelines.model_library.catalogue import deprecate

        return deprecate(options["library"], options["id"])

    parser = _action(actions, "deprecate", "mark a model as superseded", run)
    parser.add_argument("id", help="id of a model, or its first digits")


def _predict(actions: Any) -> None:
    def run(options: dict, arguments: list[str]) -> int:  # noqa: ARG001
        from pipelines.model_library.catalogue import predict_file

        return predict_file(options["library"], options["id"], Path(options["file"]), options["out"],
                            options["element_table"])  # fmt: skip

    parser = _action(actions, "predict", "predict a table of formulas, structures or SMILES with one model", run)
    parser.add_argument("id", help="id of a model, or its first digits")
    parser.add_argument("file", metavar="FILE", help="CSV, parquet or JSON with a column formula or smiles")
    parser.add_argument("--out", default=None, help="CSV to write (default: FILE's name with .predictions.csv, here)")
    parser.add_argument("--element-table", default=None, help="for models on xenon290")


def _add(actions: Any) -> None:
    def run(options: dict, arguments: list[str]) -> int:  # noqa: ARG001
        from pipelines.model_library.catalogue import add

        return add(options["library"], options["model"])

    parser = _action(actions, "add", "put a model of a run (federated, with its record) into the library", run)
    parser.add_argument("model", help="folder of a run, or the .safetensors file of one of its models")
