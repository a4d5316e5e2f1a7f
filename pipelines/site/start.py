"""`ray-fed site start`: serve this site until its owner ends it."""

import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.site.check import address_of
from ray_fed.config import at_home
from ray_fed.perimeter.policy import SITE_VARIABLE, require_site_file, site_path
from ray_fed.sites.agent import SiteAgent
from ray_fed.sites.link import Certificates
from ray_fed.sites.site_file import SiteFile, read_site_file

SAY_EVERY_SECONDS = 10.0
LOG_FILE = "site.log"


def run(options: Mapping[str, Any], _command_line: Sequence[str]) -> int:
    """Serve, and say what is waited for and what has left; Ctrl-C ends it."""
    path = site_path() if options["file"] is None else require_site_file(at_home(options["file"]))
    file = read_site_file(path)
    own = Certificates.read(file.hub.tls_folder)
    log = write_log(file.ledger_folder)
    print(f"site '{file.name}': data sets {', '.join(file.datasets)}; log and ledgers in {log.parent}", file=sys.stderr)
    os.environ[SITE_VARIABLE] = str(path.parent)  # where the silos' processes, which this one starts, find the file
    from actors.session import session

    with session(file.device.address, file.device.num_cpus):
        _serve(file, path, own)
    return 0


def _serve(file: SiteFile, path: Path, own: Certificates) -> None:
    from actors.site_host import ActorHosts

    hosts = ActorHosts(path)
    agent = SiteAgent(file.name, address_of(file.hub), own, hosts, hosts.end)
    print(f"dialling {file.hub.address}; Ctrl-C ends the site", file=sys.stderr)
    agent.start()
    try:
        say_until_interrupted(lambda: f"left so far: {hosts.departures}")
    finally:
        hosts.end_all()
        agent.stop()
        print(f"site '{file.name}' has ended: {hosts.departures}", file=sys.stderr)


def say_until_interrupted(words: Callable[[], str]) -> None:
    """Write into the log what has changed, until Ctrl-C."""
    said = ""
    try:
        while True:
            time.sleep(SAY_EVERY_SECONDS)
            if (now := words()) != said:
                logging.getLogger("ray_fed.site").info("%s", now)
            said = now
    except KeyboardInterrupt:
        print("ending; what a silo is at is lost", file=sys.stderr)


def write_log(folder: Path) -> Path:
    """Let what the site says go to standard error and into its owner's log, which only the owner can read."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / LOG_FILE
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
    form = logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S")
    ours = logging.getLogger("ray_fed")
    ours.setLevel(logging.INFO)
    for stream in (sys.stderr, os.fdopen(handle, "a", encoding="utf-8")):
        handler = logging.StreamHandler(stream)
        handler.setFormatter(form)
        ours.addHandler(handler)
    return path
