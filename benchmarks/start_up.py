"""Seconds from the command's start to the first recorded round of `ray-fed formation-energy` on a cluster of its own.

python benchmarks/start_up.py [--repeats 5]
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    found = [seconds_to_first_round() for _ in range(parser.parse_args().repeats)]
    print("seconds to the first round:", " ".join(f"{seconds:.2f}" for seconds in found))
    print(f"median {statistics.median(found):.2f}")


def seconds_to_first_round() -> float:
    command = [sys.executable, "-m", "pipelines.cli", "formation-energy", "--rounds", "100", "--epochs", "200"]
    with tempfile.TemporaryDirectory() as folder:
        history, started = Path(folder) / "run" / "history.jsonl", time.perf_counter()
        process = subprocess.Popen([*command, "--out", "run"], cwd=folder, stderr=subprocess.DEVNULL)
        try:
            while not (history.exists() and history.stat().st_size):
                if process.poll() is not None:
                    sys.exit(f"the run ended with {process.returncode} before its first round")
                time.sleep(0.02)
            return time.perf_counter() - started
        finally:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main()
