"""The only place that calls `ray.init`: one private cluster for this run, or a connection to a running one."""

import contextlib
import functools
import importlib.util
import json
import os
import secrets
import signal
import socket
import ssl
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from actors import forking
from actors.head_watch import watched_head
from ray_fed.deployment.installed import DRIVERS_VARIABLE, PACKAGES, installed_package
from ray_fed.errors import ConfigError, PlacementError
from ray_fed.reporting.environment import gpu_names

INLINE_VARIABLE = "RAY_max_direct_call_object_size"
RAYS_INLINE_BYTES = 100 * 1024
"""Arguments and results below this many bytes travel inside Ray's messages, larger ones through its object store."""
OUR_INLINE_BYTES = 2 << 20
"""In a cluster of our own: the vector of half a million parameters still travels inside (twice as fast per round)."""

SHIP_VARIABLE = "RAY_FED_SHIP_CODE"
"""A user's wish that the nodes of a cluster we join run this process's code instead of what is installed there."""

SHIP_WORDS = {"": False, "0": False, "no": False, "false": False, "1": True, "yes": True, "true": True}

START_SECONDS = 180.0
"""How long the first node of a cluster of our own may take."""

_started_here = False


@contextlib.contextmanager
def session(
    address: str = "local", num_cpus: float = 0, num_gpus: int | None = None, ship_code: bool | None = None
) -> Iterator[None]:
    """Connect to Ray for the duration of the block.

    `address="local"` starts a private cluster with at least `num_cpus` logical CPUs, on the loopback address where
    Ray lets us choose, and with a token of its own, so that nobody else on the network can submit work to it.
    Any other address joins that cluster, where every node runs the ray-fed that is installed there: the same as here,
    or PlacementError says where not. With `ship_code` this process's code goes to the nodes and is run instead; None:
    as the environment's RAY_FED_SHIP_CODE says. A process that is connected to Ray already keeps its connection.
    PlacementError when the address does not answer.
    """
    if address == "local" and _is_connected():
        yield
        return
    ships = address != "local" and (ships_code() if ship_code is None else ship_code)
    if address == "local":
        set_private_token()
        os.environ.setdefault(INLINE_VARIABLE, str(OUR_INLINE_BYTES))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # An actor that reserved no GPU must not see one: coordinator and evaluator would otherwise open a context on each.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    # Institutions have environments of their own: Ray would want the third number of their Pythons to be equal, too.
    os.environ.setdefault("RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL", "minor")
    import ray

    forked = forking.workers_forked() if address == "local" else contextlib.nullcontext()
    with forked, tempfile.TemporaryDirectory(prefix="ray-fed-") as empty:
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            _reachable(address)
            _start(address, num_cpus, num_gpus, empty, ships)
        except (OSError, RuntimeError, ValueError) as error:
            first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise PlacementError(f"no Ray cluster at address {address!r}: {first_line}{_remedy(first_line)}") from error
        _restore(handlers)
        global _started_here
        _started_here = address == "local"
        try:
            if not (_started_here or ships):
                from actors import same_package

                same_package.check_nodes()
            with contextlib.nullcontext() if _started_here else watched_head(ray.get_runtime_context().gcs_address):
                yield
        finally:
            _started_here = False
            ray.shutdown()


def ships_code() -> bool:
    """Whether the user asks for this process's code on every node; ConfigError for a word that is neither."""
    word = os.environ.get(SHIP_VARIABLE, "").strip().lower()
    if word not in SHIP_WORDS:
        raise ConfigError(f"{SHIP_VARIABLE}={word!r} must be yes or no (or 1 or 0)")
    return SHIP_WORDS[word]


def set_private_token() -> None:
    """Give the private cluster of this process a token of its own. Works only before Ray is first imported.

    Ray reads the setting once, at import. Left to itself, Ray 2.60 writes a token into the home directory and says so
    at every start. A process that has Ray already, or has chosen a mode, is left alone.
    """
    if "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def is_private() -> bool:
    """Whether this process is connected to a cluster that it started for itself."""
    return _is_connected() and _started_here


def will_be_private(address: str) -> bool:
    """Whether a `session` at this address is a cluster that this process starts, or has started, for itself."""
    return address == "local" and (is_private() or not _is_connected())


def _is_connected() -> bool:
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


def _restore(handlers: Mapping[signal.Signals, Any]) -> None:
    """Ray installs handlers of its own for the driver; ours end a run in order."""
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _reachable(address: str) -> None:
    """Ray tries an address for minutes; a closed port, or TLS on one side only, is known at once.

    ConnectionError says which.
    """
    host, colon, port = _located(address).removeprefix("ray://").rpartition(":")
    if not (colon and port.isdigit()):
        return
    place = (host.strip("[]"), int(port))
    socket.create_connection(place, timeout=5).close()
    wants_tls = os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")
    if wants_tls != _speaks_tls(place):
        here, there = ("TLS", "it does not") if wants_tls else ("no TLS", "it does")
        raise ConnectionError(f"this process speaks {here}, {there}; set RAY_USE_TLS and RAY_TLS_* as on the cluster")
    if wants_tls:
        _check_authority(place)


def _located(address: str) -> str:
    """Return where "auto" leads to: Ray leaves the address of the cluster this machine belongs to in a file."""
    current = Path(os.environ.get("RAY_TMPDIR", tempfile.gettempdir())) / "ray" / "ray_current_cluster"
    if address != "auto" or os.environ.get("RAY_ADDRESS") or not current.is_file():
        return address
    return current.read_text().strip()


def _check_authority(place: tuple[str, int]) -> None:
    """Ray tries for minutes with a certificate of another authority; ConnectionError says so at once."""
    authority = os.environ.get("RAY_TLS_CA_CERT")
    context = ssl.create_default_context(cafile=authority)
    context.check_hostname = False
    try:
        with socket.create_connection(place, timeout=5) as plain, context.wrap_socket(plain):
            pass
    except ssl.SSLCertVerificationError as error:
        said = f"its certificate is not of the authority RAY_TLS_CA_CERT={authority}: {error.verify_message}"
        raise ConnectionError(f"{said}; use the cluster's ca.crt and a certificate signed by it") from error


def _speaks_tls(place: tuple[str, int]) -> bool:
    """Whether the server answers a TLS greeting with TLS; whom it trusts is not asked here."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection(place, timeout=5) as plain, context.wrap_socket(plain):
            return True
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")  # refused, but in TLS
    except OSError:
        return False


def _remedy(said: str) -> str:
    """A port that answered and still let nobody in most likely asked for something that was not shown."""
    if "Failed to connect" not in said:
        return ""
    return (
        "; the port answers, so see whether the cluster asks for a token (RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or "
        "~/.ray/auth_token) or for certificates (RAY_USE_TLS=1, RAY_TLS_CA_CERT, RAY_TLS_SERVER_CERT, "
        "RAY_TLS_SERVER_KEY)"
    )


def _start(address: str, num_cpus: float, num_gpus: int | None, empty: str, ships: bool) -> None:
    import ray

    quiet = {"logging_level": "ERROR", "log_to_driver": False}
    if address == "local":
        # Ray puts the driver's current folder first on the workers' path, where a folder called `actors` would hide
        # ours. Starting from an empty folder avoids that for the price of nothing.
        with contextlib.chdir(empty), forking.launcher_as_python(), node_starts():
            try:
                ray.init(
                    address="local",
                    num_cpus=max(os.cpu_count() or 1, int(num_cpus + 0.999)),
                    num_gpus=_without_unusable() if num_gpus is None else num_gpus,
                    include_dashboard=False,
                    _node_ip_address="127.0.0.1",
                    **quiet,
                )
            except Exception as error:
                if type(error) is Exception:  # so Ray says that its node did not start
                    raise RuntimeError(str(error)) from error
                raise
        return
    # A driver that `ray job submit` started has an environment already, which Ray refuses to change unless told to.
    os.environ["RAY_OVERRIDE_JOB_RUNTIME_ENV"] = "1"
    ray.init(address=address, runtime_env=_environment(empty, ships), **quiet)


@contextlib.contextmanager
def node_starts() -> Iterator[None]:
    """Within the block, a node of Ray 2.60 starts without what nobody has asked for, and may take its time.

    Told to include no dashboard, Ray starts its process all the same and waits for it: a second a start. And it gives a
    node up after 30 s, which is too early where much else runs.
    """
    from ray._private import services

    start, get_node = services.start_api_server, services.get_node
    services.start_api_server = lambda *_, **__: ("", None)  # its address, its process
    services.get_node = functools.partial(_patient, get_node)
    try:
        yield
    finally:
        services.start_api_server, services.get_node = start, get_node


def _patient(get_node: Callable[..., Any], *place: Any) -> Any:
    """Ask for a node until it is there; RuntimeError of the last try after START_SECONDS."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            return get_node(*place)
        except RuntimeError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _without_unusable() -> int | None:
    """Return 0 on a machine whose GPUs torch cannot use, and say so once; None leaves it to Ray to count them."""
    if not (names := gpu_names()):
        return None
    from actors.silo import cuda_trouble

    if trouble := cuda_trouble():
        print(f"note: {len(names)} x {names[0]} is not used, silos compute on the CPU: {trouble}", file=sys.stderr)
    return 0 if trouble else None


def _environment(empty: str, ships: bool) -> dict[str, Any]:
    """Return what the nodes get: an empty folder to stand in, and of code what the user asked for."""
    sent = [*(_package_folder(name) for name in PACKAGES if ships), *_modules_of_job()]
    # The nodes' own processes compare: a node that comes later is not there to be asked now.
    drivers = {} if ships else {DRIVERS_VARIABLE: installed_package() or ""}
    # Ray 2.60 cannot set up an empty list of modules.
    return {"working_dir": empty, "env_vars": drivers} | ({"py_modules": sent} if sent else {})


def _modules_of_job() -> list[str]:
    """Return the packages that the submitter of this job sent along; ours, if sent, go besides them."""
    submitted = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    return list((submitted.get("runtime_env") or {}).get("py_modules") or [])


def _package_folder(name: str) -> str:
    """Return where a package of ours is installed, without importing it."""
    spec = importlib.util.find_spec(name)
    assert spec is not None, name
    assert spec.submodule_search_locations, name
    return str(spec.submodule_search_locations[0])
