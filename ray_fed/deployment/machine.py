"""Facts of a machine before a run: software, memory, disk, protection. No rows, and no names of files."""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ray_fed.config import at_home
from ray_fed.deployment.certificates import days_left
from ray_fed.deployment.installed import installed_package
from ray_fed.errors import ConfigError
from ray_fed.materials.features.elements import TABLE_NAMES, load_table
from ray_fed.reporting.environment import gpu_names, installed_version

PACKAGES = ("ray", "torch", "numpy")
SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Machine:
    """Facts of one machine, as seen by a process that Ray started there."""

    versions: Mapping[str, str | None]
    """Package, or "python" -> version; None: not installed. That of ray-fed has a hash of its files beside it."""
    tables: str
    """Hash of the element tables that descriptors are made from."""
    shm_free: int
    """Bytes free in shared memory, where Ray keeps the messages of a round; 0 where there is none."""
    disk_free: int
    """Bytes free where Ray keeps its session and spills."""
    disk_used: float
    """Share of that disk in use, 0 to 1."""
    auth_mode: str
    """Ray's RAY_AUTH_MODE: "token" or "disabled"; empty: not set."""
    has_tls: bool
    certificate_days: float | None
    """Days until the machine's certificate ends; None without TLS; NaN when it cannot be read."""
    gpus_seen: int
    """GPUs that the driver of the graphics card lists."""
    torch_has_gpu: bool | None
    """Whether torch can use one; None where not checked."""
    missing: tuple[str, ...] = ()
    """Of the paths asked for, those that are not there or not readable."""


def describe_machine(paths: Sequence[str] = (), ask_torch: bool = False) -> Machine:
    """Return the facts of this machine; `paths` are looked up, not opened."""
    disk = shutil.disk_usage(tempfile.gettempdir())
    has_tls = os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")
    return Machine(
        {
            "python": platform.python_version(),
            "ray-fed": installed_package(),
            **{name: installed_version(name) for name in PACKAGES},
        },
        tables_digest(),
        shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else 0,
        disk.free,
        disk.used / disk.total,
        os.environ.get("RAY_AUTH_MODE", ""),
        has_tls,
        _certificate_days() if has_tls else None,
        len(gpu_names()),
        _torch_has_gpu() if ask_torch and gpu_names() else None,
        tuple(path for path in paths if not os.access(at_home(path), os.R_OK)),
    )


def tables_digest() -> str:
    """Return one hash, 8 hexadecimal digits, over the element tables this installation has."""
    digests = "".join(load_table(name).digest for name in TABLE_NAMES)
    return hashlib.sha256(digests.encode()).hexdigest()[:8]


def _certificate_days() -> float:
    try:
        return days_left(Path(os.environ.get("RAY_TLS_SERVER_CERT", "")))
    except ConfigError:
        return float("nan")


def _torch_has_gpu() -> bool:
    """Ray hides the GPUs from a process that has reserved none, which is no fault of theirs: a new process asks."""
    asked = [sys.executable, "-c", "import torch; raise SystemExit(not torch.cuda.is_available())"]
    seen = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    return subprocess.run(asked, env=seen, capture_output=True, timeout=120, check=False).returncode == 0
