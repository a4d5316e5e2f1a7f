"""Every command of `ray-fed`: what `--help` says of it, what can be given, and what carries it out.

A command is one entry of COMMANDS and one function `run(options, command_line) -> exit code`, where `options` holds
what was given, by name, and defaults of single options. Both are named as 'module:name': a module is imported only when
its command is chosen, so that `ray-fed --help` does not wait for torch.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from operator import methodcaller
from typing import Any

from ray_fed.config import path_option

argument = partial(methodcaller, "add_argument")
"""One positional argument or option, as argparse takes them."""
place = partial(argument, type=path_option)
"""One that names a file or folder of this machine, or a URL."""


@dataclass(frozen=True)
class ConfigChoice:
    """An argument that says which configurations a command takes; the first is meant where none is given."""

    name: str
    takes: Mapping[str, tuple[methodcaller | str, ...]]

    def add_to(self, parser: argparse.ArgumentParser, arguments: Sequence[str]) -> None:
        from ray_fed.config import add_options

        names = list(self.takes)
        parser.add_argument(self.name, nargs="?", default=names[0], choices=names)
        chosen = next((word for word in arguments if word in self.takes), names[0])
        for each in self.takes[chosen]:
            if isinstance(each, str):
                add_options(parser, named(each))
            else:
                each(parser)


@dataclass(frozen=True)
class Command:
    """A command, or a group of them."""

    name: str
    """Words after `ray-fed`; all but the last are the name of the group."""
    summary: str
    """Its line in the list of commands."""
    run: str | None = None
    """'module:function'; none for a group."""
    takes: tuple[methodcaller | str | ConfigChoice, ...] = ()
    """What can be given, in the order of --help: arguments, configurations as 'module:Class', and a choice of them."""
    description: str | None = None
    """What its own --help says; the summary if not given."""
    warm_up: Callable[[Mapping[str, Any]], None] | None = None
    """Called with the options before the module of `run` is imported, to start what can go on during these imports."""

    def add_options(self, parser: argparse.ArgumentParser, arguments: Sequence[str] = ()) -> None:
        """Let the parser understand what the command takes; arguments: what was given, for a choice."""
        from ray_fed.config import add_options

        for each in self.takes:
            if isinstance(each, str):
                add_options(parser, named(each))
            elif isinstance(each, ConfigChoice):
                each.add_to(parser, arguments)
            else:
                each(parser)

    def carry_out(self, options: dict[str, Any], command_line: Sequence[str]) -> int:
        """Return the exit code."""
        assert self.run is not None
        if self.warm_up:
            self.warm_up(options)
        return named(self.run)(options, command_line)


def named(place: str) -> Any:
    """Import what stands at 'module:name'."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def _start_fork_server(options: Mapping[str, Any], *preloaded: str) -> None:
    """Let a Ray of its own begin with its workers' imports, and with what all of them will need."""
    if options.get("cohort", "ray") == "ray" and options.get("address", "local") == "local":
        from actors import forking

        forking.start(*preloaded)


def _start_fork_server_with_crystals(options: Mapping[str, Any]) -> None:
    is_embedded = options.get("data", "embedded") == "embedded" and "federation" not in options
    crystals = ["ray_fed.materials.model_crystals.crystals:enumerate_model_crystals"] if is_embedded else []
    _start_fork_server(options, *crystals)


def _start_fork_server_to_measure(options: Mapping[str, Any]) -> None:
    if {"exchange", "frequency"} & set(options.get("parts", ("exchange",))):
        _start_fork_server(options)


RUN = place("run_directory", metavar="RUN", help="folder of the run")
RUN_OR_MODEL = place("run_directory", metavar="RUN", help="folder of a run, or a .safetensors model file")
AUDITED = place("target", metavar="RUN|FEDERATION", help="folder of a run, or a federation file")
IMAGES = place("images", metavar="IMAGE", nargs="+", help="image files or folders of images")
SWEEP_FOLDER = place(
    "--out", default=argparse.SUPPRESS, metavar="PATH", help="folder of the sweep (default: runs/sweep-DATE-TIME)"
)
KEY = argument(
    "--key",
    action="append",
    default=[],
    metavar="NAME=KEY",
    help="public key of a silo, or of 'coordinator', as its owner told it (repeatable); else those in site.yaml count",
)
PREDICTIONS = place(
    "--out", default=None, help="table to write, .csv, .tsv or .xlsx (default: FILE's name with .predictions.csv, here)"
)
DATABASE = (
    argument("--query", default="", help="of a database: a SELECT statement, or the filter of its kind"),
    argument("--table", default="", help="of a database: a table, view or collection instead"),
    argument("--query-timeout", default=600.0, type=float, metavar="SECONDS", help="for all its rows (default: 600)"),
)
LIBRARY = place("--library", default="library", help="folder of the library (default: library)")
ANYWHERE = place("--library", default="library", help="folder or URL of the library (default: library)")
MODEL_ID = argument("id", help="id of a model, or its first digits")
SITE_FILE = place(
    "--file", default=None, help="the owner's file (default: site.yaml in RAY_FED_SITE, or in ~/.config/ray-fed)"
)
OWN_STRATEGY = argument(
    "--strategy",
    default=None,
    metavar="MODULE:CLASS",
    help="again, where the run's strategy is code of your own: a run's folder alone does not name code",
)
OWN_MODEL = argument(
    "--model",
    default=None,
    metavar="MODULE:CLASS",
    help="again, where the run's model is code of your own",
)
CATALOGUE = "pipelines.model_library.catalogue"
WHOLE_RUNS = "pipelines.sweep.whole_runs:WholeRunsConfig"
PLACE = "folder, or any URL that fsspec knows"

SITE_OVERRIDES = argument(
    "--set",
    dest="site_overrides",
    action="append",
    default=[],
    metavar="KEY=VALUE",
    help="override a field of the federation file: silos.NAME.FIELD=VALUE or test.FIELD=VALUE (repeatable)",
)

COMMANDS = (
    Command(
        "train",
        "train a network for any property over several silos",
        "pipelines.training.pipeline:train",
        ("pipelines.training.config:TrainConfig", SITE_OVERRIDES),
        "Train a network for one or several properties, numbers or classes, over several silos, and compare it with "
        "each silo alone and with all rows pooled.",
        _start_fork_server_with_crystals,
    ),
    Command(
        "formation-energy",
        "train with the choices of Guo et al. 2022: a formation-energy network",
        "pipelines.training.pipeline:run",
        ("pipelines.training.config:FormationEnergyConfig", SITE_OVERRIDES),
        "Train a formation-energy network [eV/atom] over several silos, and compare it with each silo alone and with "
        "all rows pooled. A preset of `ray-fed train`: the same options, other defaults.",
        _start_fork_server_with_crystals,
    ),
    Command(
        "resume",
        "go on with a run that was interrupted, failed or killed",
        "pipelines.training.pipeline:resume",
        (RUN, OWN_STRATEGY, OWN_MODEL),
        "Continue a run from its last complete round; the result is that of a run that was not broken off.",
    ),
    Command(
        "predict",
        "predict new structures or formulas with the model of a run",
        "pipelines.training.predict:run",
        (
            RUN_OR_MODEL,
            place(
                "file",
                metavar="FILE",
                help="CSV/parquet/JSON table, folder of CIF/POSCAR files, a structure file, or a database's address",
            ),
            PREDICTIONS,
            *DATABASE,
            argument(
                "--structures",
                default="all",
                metavar="all|first|NUMBER",
                help="which of several structures in one file (default: all)",
            ),
            argument(
                "--symmetry",
                default="given",
                choices=("given", "check", "spglib", "moyopy"),
                help="space group: the number given, else spglib; check: the same, and a note where spglib finds "
                "another; or always computed (default: given)",
            ),
            argument(
                "--model",
                default="federated",
                help="federated, pooled, the name of a silo, or all (default: federated)",
            ),
            argument(
                "--network", default=None, metavar="MODULE:CLASS", help="of a run with a network of your own: that"
            ),
            argument(
                "--silo",
                default=None,
                metavar="NAME",
                help="the personal model of this silo (RUN/personal), which knows what its rows are like",
            ),
        ),
        "Write a CSV with one line per entry of FILE, its columns kept: the prediction with its unit, bounds that hold "
        "50 and 90 of 100 rows like those of the silos, and what speaks against it; or the reason why there is none. "
        "Where FILE has the true values, errors are printed.",
    ),
    Command(
        "leakage",
        "what a gradient gives away: DLG, iDLG, WDLG and stronger attacks side by side",
        "pipelines.leakage.pipeline:run",
        ("pipelines.leakage.config:LeakageConfig",),
        "Attack single gradients of image classifiers with equal budgets and judge the claims of WDLG (Int. J. Intell. "
        "Syst. 2022).",
    ),
    Command(
        "audit",
        "what the messages of your own federation give away",
        "pipelines.leakage.audit_pipeline:run",
        (
            AUDITED,
            OWN_STRATEGY,
            "pipelines.leakage.audit_config:AuditConfig",
        ),
        "Replay, inside the silos, what a coordinator receives in a run or a federation, attack it, and say per silo "
        "what is reconstructed and what stops it. A silo is audited only if its owner's policy allows it.",
    ),
    Command(
        "flower",
        "run an app written for Flower, unchanged, on silos of this runtime",
        "pipelines.flower.command:run",
        (
            place("app", metavar="FOLDER", help="folder of the app, with its pyproject.toml"),
            argument(
                "--run-config",
                action="append",
                default=[],
                metavar="TEXT",
                help='values in place of the app\'s own, as flwr run takes them: "num-server-rounds=5 lr=0.1", or a '
                ".toml file (repeatable)",
            ),
            argument("--resume", action="store_true", help="go on with the run in the folder of --out"),
            "pipelines.flower.config:FlowerConfig",
        ),
        "Run the ServerApp and the ClientApp of a folder as `flwr run` does: a silo is what Flower calls a SuperNode. "
        "What clients answer crosses their silo's gate and is a line in its ledger.",
        _start_fork_server,
    ),
    Command(
        "sweep",
        "many runs over the same silos with Ray Tune: communication frequency, learning rate, any other field",
        "pipelines.sweep.pipeline:run",
        (
            place("--resume", metavar="RUN", default=None, help="go on with a sweep that was broken off"),
            ConfigChoice(
                "pipeline",
                {
                    "formation-energy": (
                        "pipelines.sweep.config:SweepConfig",
                        "pipelines.training.config:FormationEnergyConfig",
                    ),
                    "train": ("pipelines.sweep.config:SweepConfig", "pipelines.training.config:TrainConfig"),
                    "fedtransfer": (WHOLE_RUNS, "pipelines.fedtransfer.config:FedTransferConfig"),
                    "leakage": (WHOLE_RUNS, "pipelines.leakage.config:LeakageConfig"),
                    "audit": (AUDITED, OWN_STRATEGY, WHOLE_RUNS, "pipelines.leakage.audit_config:AuditConfig"),
                    "transfer": (WHOLE_RUNS, "pipelines.model_library.config:TransferConfig"),
                    "library-build": (SWEEP_FOLDER, WHOLE_RUNS, "pipelines.model_library.config:BuildConfig"),
                    "study-value": (
                        WHOLE_RUNS,
                        "pipelines.value.config:ValueConfig",
                        "pipelines.training.config:TrainConfig",
                    ),
                    "segment": (
                        RUN_OR_MODEL,
                        IMAGES,
                        WHOLE_RUNS,
                        "pipelines.segmentation.config:SegmentConfig",
                    ),
                },
            ),
        ),
        "Run Ray Tune over fields of a pipeline. Of formation-energy and train the silos open their data once "
        "and serve all trials; of the others each trial is a run of its own. `ray-fed sweep PIPELINE --help` has the "
        "options of one.",
        _start_fork_server,
    ),
    Command(
        "study",
        "studies of a federation before it is founded",
        description="Studies of a federation before it is founded.",
    ),
    Command(
        "study value",
        "what joining is worth to each member before it commits, as a function of its rows",
        "pipelines.value.pipeline:run",
        ("pipelines.value.config:ValueConfig", "pipelines.training.config:TrainConfig", SITE_OVERRIDES),
        "Train on all silos and once without each. Each silo measures, inside itself, what the model of the others "
        "adds to the best it can do with more and more of its own rows; and each is scored by what the others lose "
        "without it. Options of training are those of `ray-fed train`.",
        _start_fork_server_with_crystals,
    ),
    Command(
        "library",
        "a library of pretrained models: build, query, transfer (Yamada et al. 2019)",
        description="Build, query and transfer from a library of pretrained models (XenonPy.MDL's idea).",
    ),
    Command(
        "library build",
        "train thousands of models; goes on where it stopped",
        "pipelines.model_library.build:build",
        ("pipelines.model_library.config:BuildConfig",),
    ),
    Command(
        "library demo",
        "build, query, move and transfer on embedded data, in under 3 minutes",
        "pipelines.model_library.demo:demo",
        (
            place("--out", default=None, help="folder (default: runs/library-demo-DATE-TIME)"),
            argument(
                "--address",
                default=argparse.SUPPRESS,
                help="Ray cluster (default: RAY_ADDRESS where it is set, else local)",
            ),
        ),
    ),
    Command(
        "library query",
        'list models, e.g. "property = band_gap and mae < 0.5 order by mae limit 10"',
        f"{CATALOGUE}:query",
        (
            ANYWHERE,
            argument("query", nargs="?", default="", help="conditions; all models if not given"),
            argument("--columns", default=None, help="comma-separated fields; XenonPy's names are understood"),
            place("--csv", default=None, metavar="FILE", help="write the answer to a CSV file"),
            argument("--failures", action="store_true", help="also list models that failed, with their reason"),
        ),
    ),
    Command("library show", "print the card of a model", f"{CATALOGUE}:show", (LIBRARY, MODEL_ID)),
    Command(
        "library transfer",
        "what a library adds to a few rows, and a model that predicts: --save MODEL",
        "pipelines.model_library.transfer:run",
        ("pipelines.model_library.config:TransferConfig",),
    ),
    Command(
        "library push",
        "copy models to another place",
        f"{CATALOGUE}:push",
        (
            LIBRARY,
            place("to", help=PLACE),
            argument("query", nargs="?", default="", help="which models; all if not given"),
        ),
    ),
    Command(
        "library pull",
        "copy models from another place; every hash is checked",
        f"{CATALOGUE}:pull",
        (
            LIBRARY,
            place("origin", help=PLACE),
            argument("ids", nargs="*", help="ids, or their first digits; all models if none are given"),
        ),
    ),
    *(
        Command(
            f"library {what}", f"list {told}, with numbers of models and their best", f"{CATALOGUE}:{what}", (ANYWHERE,)
        )
        for what, told in (
            ("properties", "the properties of a library"),
            ("sets", "its data sets"),
            ("methods", "its methods and descriptors"),
        )
    ),
    Command(
        "library page",
        "write a library as one HTML file that opens in a browser",
        "pipelines.model_library.page:page",
        (
            ANYWHERE,
            argument("query", nargs="?", default="", help="which models; all if not given"),
            place("--out", default="library.html", metavar="FILE", help="file to write (default: library.html)"),
        ),
    ),
    Command("library summary", "say in a few lines what a library holds", f"{CATALOGUE}:summary", (ANYWHERE,)),
    Command(
        "library verify",
        "read every file of a library, or of a place models were pushed to, and check every hash",
        f"{CATALOGUE}:verify",
        (ANYWHERE, argument("--set-aside", action="store_true", help="move damaged models to LIBRARY/damaged")),
    ),
    Command(
        "library diff",
        "list the models that only one of two libraries has",
        f"{CATALOGUE}:diff",
        (LIBRARY, place("other", help=PLACE)),
    ),
    Command(
        "library reindex",
        "make the index again from the cards; damaged ones are set aside",
        f"{CATALOGUE}:reindex",
        (LIBRARY,),
    ),
    Command(
        "library deprecate",
        "mark a model as superseded: queries leave it out",
        f"{CATALOGUE}:deprecate",
        (LIBRARY, MODEL_ID),
    ),
    Command(
        "library predict",
        "predict a table of formulas, structures or SMILES with one model",
        f"{CATALOGUE}:predict_file",
        (
            LIBRARY,
            MODEL_ID,
            place("file", metavar="FILE", help="CSV, TSV, parquet, JSON or XLSX with formulas or SMILES"),
            PREDICTIONS,
            argument("--material-column", default=None, help="column of formulas or SMILES without a usual name"),
            place("--element-table", default=None, help="for models on xenon290"),
        ),
    ),
    Command(
        "library add",
        "put a model of a run (federated, with its record) or of a transfer into the library",
        f"{CATALOGUE}:add",
        (LIBRARY, place("model", help="folder of a run, or the .safetensors file of one of its models")),
    ),
    Command(
        "segment",
        "find the grains of new micrographs with the model of a run",
        "pipelines.segmentation.pipeline:run",
        (
            RUN_OR_MODEL,
            IMAGES,
            "pipelines.segmentation.config:SegmentConfig",
        ),
        "Write, for each image, its boundary mask and an overlay, and for all a table of grains and one of fields, "
        "with ASTM grain-size numbers where the pixel size is given.",
    ),
    Command(
        "fedtransfer",
        "segmentation of micrographs with style generators that move between silos",
        "pipelines.fedtransfer.pipeline:run",
        (
            argument(
                "--quick",
                dest="preset",
                action="store_const",
                const="quick",
                default=argparse.SUPPRESS,
                help="same as --preset quick",
            ),
            "pipelines.fedtransfer.config:FedTransferConfig",
        ),
        "Train a label -> image generator in every silo, let the generators (never images) move, and federate a U-Net "
        "on real and synthetic images; compare with training alone, pooled and cheaper exchanges.",
        _start_fork_server,
    ),
    Command(
        "ledger",
        "prove what left the silos of a run, and where a model came from",
        description="Check the signed, hash-chained ledgers of a run.",
    ),
    Command(
        "ledger verify",
        "check that no line was changed, dropped or moved, and that silos and coordinator agree",
        "pipelines.ledger.verify:run",
        (
            RUN,
            place(
                "--silo-ledgers",
                metavar="FOLDER",
                default=None,
                help="ledgers fetched from the silos themselves, SILO.jsonl or SILO/*.jsonl, instead of those handed "
                "over (default: RUN/ledger/silos)",
            ),
            KEY,
        ),
        "Check chains, signatures, keys and completeness of all ledgers of a run, its model files, and that every "
        "message the coordinator received is one that its silo wrote down. Exit code 0: verified; 1: something "
        "contradicts; 3: nothing does, but something cannot be known, such as whose keys these are.",
    ),
    Command(
        "ledger trace",
        "show from which updates, of which silos, a model was made",
        "pipelines.ledger.trace:run",
        (
            RUN,
            place("model", metavar="MODEL", help="a .safetensors file of this run, published anywhere"),
            argument("--rounds", type=int, default=5, metavar="INT", help="rounds to show in full (default: 5)"),
            KEY,
        ),
        "Find a model in the coordinator's ledger by the hash of its weights, and go back to the first round: each "
        "update with its hash in the ledger of its silo.",
    ),
    Command(
        "ledger key",
        "print the public key of a silo of this machine",
        "pipelines.ledger.key:run",
        (argument("silo", metavar="SILO", help="name of the silo in its federation file"),),
        "Print the public key of a silo whose ledger stands on this machine (site.yaml: ledger); it is made where "
        "there is none. Other owners write it under 'partners' in their site.yaml.",
    ),
    Command(
        "bench",
        "how fast this machine trains, averages and exchanges, as ratios to plain loops",
        "pipelines.bench.pipeline:run",
        ("pipelines.bench.config:BenchConfig",),
        "Measure the runtime against the loops everybody writes first, in one run on this machine.",
        _start_fork_server_to_measure,
    ),
    Command(
        "cluster",
        "make what a cluster of institutions needs: a private authority and certificates",
        description="Prepare a cluster; how to launch one is in cluster/README.md.",
    ),
    Command(
        "cluster certs",
        "a certificate for each machine, signed by an authority of your own",
        "pipelines.cluster.certs:run",
        (
            argument(
                "nodes",
                nargs="*",
                metavar="NAME=ADDRESS[,ADDRESS]",
                help="machines, with all addresses others reach them by; none: only the authority is made",
            ),
            place("--out", default="certs", metavar="FOLDER", help="where the folders are made (default: certs)"),
            argument("--days", type=int, default=365, metavar="INT", help="how long they count (default: 365)"),
            argument("--renew", action="store_true", help="replace certificates and keys that are there"),
            place(
                "--authority",
                default=None,
                metavar="FOLDER",
                help="where ca.crt and ca.key are or will be (default: --out)",
            ),
        ),
        "Make a private certificate authority, once, and a folder with certificate and key for each machine, to be "
        "brought there as ~/ray-fed/tls. The authority's key stays where it was made.",
    ),
    Command(
        "site",
        "a site of your own: what others may do with its data, and the connection that it dials out",
        description="Serve data of this machine to a coordinator elsewhere, under rules of your own.",
    ),
    Command(
        "site init",
        "write this site's file, and print what the coordinator must know",
        "pipelines.site.init:run",
        (
            SITE_FILE,
            argument("--name", default=None, help="name of this site, as the coordinator will call it"),
            argument("--hub", default=None, metavar="HOST:PORT", help="the coordinator's hub"),
            argument("--hub-key", default=None, metavar="HASH", help="of the hub's public key, as its owner says"),
            argument(
                "--dataset", action="append", default=[], metavar="NAME=FILE", help="a data set by a name (repeatable)"
            ),
            argument(
                "--target",
                action="append",
                default=[],
                metavar="NAME=COLUMN:UNIT",
                help="a column that may be learned, by a name, with its unit (repeatable)",
            ),
            argument("--tls", default="~/ray-fed/tls", metavar="FOLDER", help="ca.crt, node.crt and node.key"),
            argument("--proxy", default=None, metavar="HOST:PORT", help="HTTP CONNECT proxy on the way out"),
            argument("--ledger", default="~/ray-fed/ledger", metavar="FOLDER", help="where ledgers and log are kept"),
            argument("--state", default="~/ray-fed/state", metavar="FOLDER", help="where optimiser states are kept"),
            argument("--receive-models", default=None, metavar="FOLDER", help="take the final models of runs, into it"),
        ),
        "Write a commented site.yaml that only this account can read, make the site's signing key, and print what the "
        "coordinator must know. What is not given is asked for.",
    ),
    Command(
        "site check",
        "try everything that a run will need: data, certificate, hub, GPU",
        "pipelines.site.check:run",
        (SITE_FILE,),
        "Open the data sets, look at the certificate, and reach the hub through the proxy without beginning anything. "
        "Exit code 1 when something would keep a run from working.",
    ),
    Command(
        "site start",
        "serve this site until Ctrl-C",
        "pipelines.site.start:run",
        (SITE_FILE,),
        "Dial out to the hub, for ever, and train on this machine what the site's file allows.",
    ),
    Command(
        "site relay",
        "serve as a hub between sites and the coordinator, for a region or a consortium, until Ctrl-C",
        "pipelines.site.relay:run",
        (SITE_FILE,),
        "Let sites dial in here, dial out to the coordinator's hub as one site, and add the sites' updates up on the "
        "way: no bit of the model changes. The file has `relay: {listen: HOST:PORT, sites: {NAME: KEY}}`, and no data.",
    ),
    Command(
        "site key",
        "print the hash of a machine's public key, for the other side to pin",
        "pipelines.site.key:run",
        (
            place(
                "folder",
                nargs="?",
                default="~/ray-fed/tls",
                metavar="FOLDER",
                help="with node.crt and node.key",
            ),
        ),
    ),
    Command(
        "doctor",
        "check this machine, or a running cluster, before a run",
        "pipelines.cluster.doctor:run",
        ("pipelines.cluster.config:DoctorConfig",),
        "Look at this machine: versions, memory, disk, GPU, ports, clock. With --address, visit every node: versions, "
        "memory, disk, clock, protection, the way there and back, and whether the silos of a federation file find "
        "their site, their GPUs and their data. Exit code 1 when a run would break or strangers could get in.",
    ),
    Command(
        "attach",
        "show the progress of a run that was started elsewhere or lost its terminal",
        "pipelines.cluster.attach:run",
        (place("run_directory", metavar="RUN", help="folder of the run, on the machine that keeps it"),),
        "Show the rounds of a run as they come, until it ends. Ctrl-C leaves the run alone.",
    ),
)
