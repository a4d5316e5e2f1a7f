"""The job of site_transport.py on Flower's deployment engine: one SuperLink, four SuperNodes, all over the loopback.

    PYTHON site_transport_flower.py FOLDER ROUNDS

PYTHON has flwr 1.41 and torch; started by site_transport.py. FOLDER is empty: the app, Flower's own files and the logs
go there. Prints the seconds of every round as the server sees them (from the end of one to the end of the next), and
last their median. The first round is left out: it starts what later ones find there.

Flower's connections are --insecure here, so it does not even pay for TLS.
"""

import contextlib
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

PROGRAMS = Path(sys.executable).parent
CONNECTION = "bench"
NUM_SILOS = 4
MOST_SECONDS = 600.0
"""For the whole run; a round takes half a minute where the cores are busy."""

MODEL = '''
import numpy as np
import torch
from torch import nn

ROWS, COLUMNS, BATCHES = 2000, 65, 10


def network():
    return nn.Sequential(nn.Linear(COLUMNS, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 1))


def drawn(seed):
    random = np.random.default_rng(seed)
    return random.normal(size=(ROWS, COLUMNS)).astype(np.float32), random.normal(size=ROWS).astype(np.float32)


def one_batch(model, x, y, number):
    """Take the step of round `number` on its batch; return the loss."""
    size = ROWS // BATCHES
    part = slice((number - 1) % BATCHES * size, ((number - 1) % BATCHES + 1) * size)
    optimiser = torch.optim.Adam(model.parameters())
    loss = nn.functional.mse_loss(model(torch.from_numpy(x[part]))[:, 0], torch.from_numpy(y[part]))
    loss.backward()
    optimiser.step()
    return float(loss.detach())
'''

CLIENT = """
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from one_batch.model import BATCHES, ROWS, drawn, network, one_batch

torch.set_num_threads(1)
app = ClientApp()


@app.train()
def train(message, context):
    model = network()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    number = int(message.content["config"]["server-round"])
    loss = one_batch(model, *drawn(int(context.node_config["silo"])), number)
    metrics = MetricRecord({"loss": loss, "num-examples": ROWS // BATCHES})
    return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message)
"""

SERVER = """
import time

from flwr.app import ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

from one_batch.model import network

app = ServerApp()


@app.main()
def main(grid, context):
    given = context.run_config
    nodes = int(given["silos"])

    def at_round_end(server_round, arrays):
        with open(given["ends"], "a") as file:
            print(server_round, time.perf_counter(), file=file)

    strategy = FedAvg(
        fraction_evaluate=0.0, min_train_nodes=nodes, min_evaluate_nodes=0, min_available_nodes=nodes
    )
    strategy.start(
        grid=grid, initial_arrays=ArrayRecord(network().state_dict()), num_rounds=int(given["rounds"]),
        evaluate_fn=at_round_end,
    )
"""

PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "one-batch"
version = "1.0.0"
description = "An exchange after every batch"
license = "Apache-2.0"
dependencies = []

[tool.hatch.build.targets.wheel]
packages = ["."]

[tool.flwr.app]
publisher = "benchmark"

[tool.flwr.app.components]
serverapp = "one_batch.server:app"
clientapp = "one_batch.client:app"

[tool.flwr.app.config]
rounds = {rounds}
silos = {silos}
ends = "{ends}"
"""


def write_app(folder: Path, rounds: int, ends: Path) -> Path:
    app = folder / "app"
    package = app / "one_batch"
    package.mkdir(parents=True)
    (app / "pyproject.toml").write_text(PROJECT.format(rounds=rounds, silos=NUM_SILOS, ends=ends))
    for name, text in {"__init__": "", "model": MODEL, "client": CLIENT, "server": SERVER}.items():
        (package / f"{name}.py").write_text(text)
    return app


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def environment(home: Path) -> dict[str, str]:
    """Return that of Flower's processes: nothing of the user's folder, no word to anybody outside."""
    own = {"FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    local = dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost")
    return os.environ | own | local | {"PATH": f"{PROGRAMS}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}


@contextlib.contextmanager
def running(folder: Path, name: str, command: list[str], given: dict[str, str]) -> Iterator[None]:
    """Run a command, with a log of its own, as the head of a process group that ends with the block."""
    with (folder / f"{name}.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=given, start_new_session=True)
        try:
            yield
        finally:
            for group in groups_of(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(group, signal.SIGKILL)
            process.wait()


def groups_of(pid: int) -> list[int]:
    """Return the process groups below a process, its own included: a SuperLink gives a child one of its own."""
    table = subprocess.run(["ps", "-eo", "pid=,ppid=,pgid="], capture_output=True, text=True, check=True).stdout
    rows = [tuple(map(int, line.split())) for line in table.splitlines()]
    below: set[int] = set()
    more = {pid}
    while more:
        below |= more
        more = {child for child, parent, _ in rows if parent in below} - below
    return sorted({group for child, _, group in rows if child in below})


def wait_for_port(port: int, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return
        time.sleep(0.2)
    raise SystemExit(f"the SuperLink does not listen at port {port} after {seconds:g} s; see its log")


def superlink(port: int) -> list[str]:
    options = ["--insecure", "--port", str(port), "--disable-runtime-dependency-installation"]
    return [str(PROGRAMS / "flower-superlink"), *options]


def supernode(silo: int, port: int) -> list[str]:
    options = ["--insecure", "--superlink", f"127.0.0.1:{port}", "--port", str(free_port())]
    return [str(PROGRAMS / "flower-supernode"), *options, "--node-config", f"silo={silo}"]


def run_app(app: Path, given: dict[str, str]) -> str:
    """Run the app to its end; return what Flower said of it."""
    command = [str(PROGRAMS / "flwr"), "run", str(app), CONNECTION, "--stream"]
    try:
        done = subprocess.run(command, env=given, capture_output=True, text=True, timeout=MOST_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise SystemExit(f"no end within {MOST_SECONDS:g} s:\n{(error.stdout or b'')[-3000:].decode()}") from None
    return f"{done.stdout[-3000:]}{done.stderr[-3000:]}"


def main(folder: Path, rounds: int) -> None:
    ends, home, port = folder / "ends", folder / "home", free_port()
    app, given = write_app(folder, rounds, ends), environment(home)
    home.mkdir()
    address = f'address = "127.0.0.1:{port}"\ninsecure = true'
    (home / "config.toml").write_text(f"[superlink.{CONNECTION}]\n{address}\n")
    with contextlib.ExitStack() as stack:
        stack.enter_context(running(folder, "superlink", superlink(port), given))
        wait_for_port(port)
        for silo in range(1, NUM_SILOS + 1):
            stack.enter_context(running(folder, f"supernode-{silo}", supernode(silo, port), given))
        said = run_app(app, given)
    at = [float(line.split()[1]) for line in ends.read_text().splitlines()] if ends.exists() else []
    if len(at) != rounds + 1:
        raise SystemExit(f"{max(0, len(at) - 1)} of {rounds} rounds came to an end:\n{said}")
    seconds = [after - before for before, after in pairwise(at)]
    print("seconds of each round:", *(f"{each:.2f}" for each in seconds))
    print("median of those after the first:", statistics.median(seconds[1:]))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), int(sys.argv[2]))
