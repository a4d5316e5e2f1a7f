"""`~` is the home folder in every option and argument that names a place, of every command: one type says so."""

import argparse
import re
from pathlib import Path

import pytest

from pipelines.commands import COMMANDS
from ray_fed.config import path_text
from ray_fed.errors import ConfigError

STRUCTURES = ("train", "formation-energy", "sweep", "predict", "study value")
NO_PLACES = {
    **{
        (command, option): why
        for command in ("train", "formation-energy", "study value")
        for option, why in {
            "site_overrides": "fields of the federation file; a site's paths are those of its machine",
            "start_timeout": "seconds",
            "share_model": "yes or no",
        }.items()
    },
    ("audit", "defences"): "noise and clipping",
    ("audit", "changes"): "ways to train",
    ("sweep", "scheduler"): "the word 'file' is not its own",
    ("fedtransfer", "masks"): "what numbers in masks mean",
    ("fedtransfer", "image_files"): "a pattern inside a silo's folder",
    ("fedtransfer", "mask_files"): "a pattern inside a silo's folder",
    ("fedtransfer", "pixel_size_um"): "micrometres",
    ("fedtransfer", "data_bar"): "rows of pixels",
    ("fedtransfer", "most_tiles"): "a number",
    ("segment", "pixel_size_um"): "micrometres",
    ("segment", "page"): "a number",
    ("sweep", "share_model"): "yes or no",
    ("resume", "strategy"): "code of one's own, MODULE:NAME",
    ("audit", "strategy"): "code of one's own, MODULE:NAME",
    ("sweep", "start_timeout"): "seconds",
    **{
        ("site init", option): "written into site.yaml, in which `~` is read as the home of the silo's account"
        for option in ("dataset", "tls", "ledger", "state", "receive_models")
    },
    ("flower", "run_config"): "values of the app's own configuration",
    ("flower", "resume"): "yes or no",
    ("flower", "silos"): "a number",
    ("ledger key", "silo"): "the name of a silo",
    ("segment", "bits"): "bits of a camera",
    ("library build", "descriptors"): "names of descriptors",
    **{(command, "structures"): "which of a file's structures" for command in STRUCTURES},
    ("predict", "silo"): "the name of a silo",
}
"""Options whose help speaks of files or folders, and that name none."""
WORDS = re.compile(r"\b(folders?|files?|FOLDER|FILE|RUN|URL|CSV)\b")


def options():
    for command in COMMANDS:
        if command.run is not None:
            parser = argparse.ArgumentParser()
            command.add_options(parser)
            yield from ((command.name, action) for action in parser._actions if action.dest != "help")


def expands(action):
    try:
        return action.type is not None and str(Path.home()) in str(action.type("~/x"))
    except (argparse.ArgumentTypeError, ValueError, TypeError):
        return False


ALL = list(options())


@pytest.mark.parametrize(("command", "action"), ALL, ids=[f"{name}: {action.dest}" for name, action in ALL])
def test_an_option_that_speaks_of_places_expands_the_home_folder(command, action):
    speaks_of_places = WORDS.search(f"{action.help or ''} {action.metavar or ''}")
    if speaks_of_places and (command, action.dest) not in NO_PLACES and action.choices is None:
        assert expands(action), f"{command}: {action.option_strings or action.dest}"


def test_the_exceptions_are_options_and_do_not_expand():
    named = {(command, action.dest): action for command, action in ALL}
    assert [key for key in NO_PLACES if key not in named or expands(named[key])] == []


def test_at_least_one_place_of_every_command_that_has_a_folder_is_found():
    assert sum(expands(action) for _, action in ALL) >= 40


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("~", "{home}"),
        ("~/a", "{home}/a"),
        ("north=~/a", "north={home}/a"),
        ("embedded", "embedded"),
        ("a/~/b", "a/~/b"),
        ("a~", "a~"),
        ("s3://bucket/~x", "s3://bucket/~x"),
        ("", ""),
    ],
)
def test_a_home_folder_stands_at_the_beginning_of_a_place(given, meant):
    assert path_text(given) == meant.format(home=Path.home())


def test_a_home_of_nobody_is_refused_in_one_line():
    with pytest.raises(ConfigError, match="~nobody-of-this-name/a: there is no such home"):
        path_text("~nobody-of-this-name/a")
