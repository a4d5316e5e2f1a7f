"""With what a run was made: versions and processors, found without importing what they describe."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

PACKAGES = (
    "ray-fed", "ray", "torch", "numpy", "pandas", "pymatgen", "mendeleev", "scikit-learn", "spglib", "safetensors",
)  # fmt: skip
"""What can change a number of a run."""


def describe_environment(devices: Mapping[str, str]) -> dict[str, object]:
    """Return versions, platform, processors and `devices` (silo -> device); nothing of the user or the network."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "packages": {name: installed_version(name) for name in PACKAGES},
        "cpu": cpu_name(),
        "cpu_count": os.cpu_count(),
        "cpu_count_usable": usable_cpus(),
        "gpus": gpu_names(),
        "devices": dict(devices),
    }


def software_versions() -> dict[str, str]:
    """Return the installed ones of PACKAGES, for a model card."""
    found = {"python": platform.python_version(), **{name: installed_version(name) for name in PACKAGES}}
    return {name: version for name, version in found.items() if version is not None}


def installed_version(package: str) -> str | None:
    """Return a distribution's version, None when it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def usable_cpus() -> int | None:
    """Return the processors this process may use: fewer than the machine's inside a container or a batch job."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's name; on Linux `platform` does not know it."""
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def gpu_names() -> list[str]:
    """Return the NVIDIA GPUs of this machine by name; empty without a driver or when it does not answer."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    query = [command, "--query-gpu=name", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        # A broken driver is no reason to lose a run; that no GPU is listed says it.
        return []
    names = answer.stdout.splitlines() if answer.returncode == 0 else []
    return [name.strip() for name in names if name.strip()]
