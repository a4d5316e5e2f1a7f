"""TensorBoard's pages of a run or a sweep, as pictures: what a user sees, taken with headless Chromium.

    python benchmarks/screenshots.py RUN FOLDER

Starts TensorBoard on a free loopback port for RUN/tensorboard and leaves one PNG per tab in FOLDER. Exits with 1 when a
page stays blank.
"""

import argparse
import contextlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from skimage.io import imread

TABS = {"scalars": "timeseries", "groups": "custom_scalars", "hparams": "hparams", "images": "images", "text": "text"}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PATIENCE_SECONDS = 60
DRAWING = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader")
"""TensorBoard draws curves by WebGL: without it, cards of scalars have axes and numbers only."""


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """Yield the address of a TensorBoard that has read the folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )  # fmt: skip
    try:
        address = f"http://127.0.0.1:{port}/"
        _wait_for(address + "data/plugins_listing")
        time.sleep(5)  # it reads the event files in the background
        yield address
    finally:
        process.terminate()
        process.wait()


def _wait_for(address: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def picture(browser: str, address: str, path: Path) -> None:
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, "--headless", "--no-sandbox", f"--user-data-dir={profile}", *DRAWING]
        size, wait = "--window-size=1500,1100", "--virtual-time-budget=20000"
        subprocess.run(
            [*command, size, wait, f"--screenshot={path}", address], check=True, capture_output=True, timeout=120
        )  # fmt: skip


def is_blank(path: Path) -> bool:
    """Whether next to nothing stands below the header."""
    below = imread(path)[150:, :, :3].reshape(-1, 3)
    return len(np.unique(below[::7] // 16, axis=0)) < 8


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tabs", nargs="+", choices=list(TABS), default=["scalars", "groups", "hparams"])
    options = parser.parse_args()
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        print(f"none of {', '.join(BROWSERS)} is installed; install one", file=sys.stderr)
        return 2
    options.folder.mkdir(parents=True, exist_ok=True)
    blank = []
    with served(options.run / "tensorboard") as address:
        for tab in options.tabs:
            path = options.folder / f"{tab}.png"
            picture(browser, f"{address}#{TABS[tab]}", path)
            blank += [tab] if is_blank(path) else []
            print(path)
    if blank:
        print(f"blank: {', '.join(blank)}", file=sys.stderr)
    return int(bool(blank))


if __name__ == "__main__":
    sys.exit(main())
