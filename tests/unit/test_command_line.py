"""The command line itself: what it costs to read it."""

import subprocess
import sys

HEAVY = ("torch", "ray", "pandas", "pymatgen", "sklearn", "matplotlib", "scipy", "skimage")


def test_options_are_read_before_anything_heavy_is_imported():
    """A second of imports would come before every --help, and before the workers-to-be begin with theirs."""
    code = f"import sys, pipelines.cli as c; c._parse(sys.argv[1:]); print(*sorted({set(HEAVY)!r} & set(sys.modules)))"
    for command in ("formation-energy", "sweep", "leakage", "fedtransfer", "bench"):
        done = subprocess.run([sys.executable, "-c", code, command], capture_output=True, text=True, check=True)
        assert done.stdout.split() == [], command
