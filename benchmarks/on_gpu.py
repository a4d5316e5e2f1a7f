"""Everything of ray-fed that computes on a GPU, in one run: rates, memory, equal bits, and what falls back.

python benchmarks/on_gpu.py [--size full|toy] [--sections trainer,unet] [--out FOLDER]

Each section runs in a process of its own, with a time limit: one that hangs or dies is a line in the page, and the next
one begins with a fresh GPU. Writes on_gpu.json and on_gpu.md into FOLDER. Without a GPU it computes on the CPU, for
which `--size toy` is meant. All limits together are under 9 minutes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

Found = Mapping[str, Any]
"""What a section found: name -> number, truth or text."""


@dataclass(frozen=True)
class Size:
    """How much is computed."""

    batches: tuple[int, ...] = (32, 256, 4096)
    steps: int = 400
    sessions: int = 200
    pixels: tuple[int, ...] = (128, 400)
    widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    style_images: int = 16
    style_pixels: int = 128
    attacks: int = 64
    budget: int = 200
    silos: int = 6
    rounds: int = 400


TOY = Size((8,), 6, 3, (32,), (4, 8), 2, 32, 2, 3, 2, 30)
SIZES = {"full": Size(), "toy": TOY}


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _rate(step: Callable[[], object], count: int) -> float:
    """Return calls per second, the median of three stretches, after some that warm up."""
    for _ in range(3):
        step()
    stretches = []
    for _ in range(3):
        _synchronise()
        started = time.perf_counter()
        for _ in range(count):
            step()
        _synchronise()
        stretches.append(count / (time.perf_counter() - started))
    return statistics.median(stretches)


def _allocated() -> int:
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


# ---- sections


def environment(_: Size) -> Found:
    """What is here."""
    found: dict[str, Any] = {"torch": torch.__version__, "python": sys.version.split()[0], "device": device()}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {"gpu": properties.name, "GPU memory GB": round(properties.total_memory / 1e9, 1)}
        found |= {"cuda": torch.version.cuda, "bf16 units": torch.cuda.is_bf16_supported(including_emulation=False)}
    return found


def _trainer(batch: int, on: str, loss: Any = functional.mse_loss, module: nn.Module | None = None) -> Any:
    from ray_fed.learning.models import seeded_mlp
    from ray_fed.learning.trainer import LocalTrainer, TrainingPlan

    draw = torch.Generator().manual_seed(0)
    x = torch.randn(4 * batch, 73, generator=draw)
    y = x.square().mean(1, keepdim=True)
    plan = TrainingPlan(seed=0, epochs=10**6, steps_per_epoch=4, num_rounds=10**6)
    return LocalTrainer(module or seeded_mlp(73, (200, 200), 0), loss, x.to(on), y.to(on), plan, "silo")


def _branching(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    loss = functional.mse_loss(outputs, y)
    return loss if loss.item() > 0.1 else 2 * loss


def _masked(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return functional.mse_loss(outputs[y > 1], y[y > 1])


def trainer(size: Size) -> Found:
    """Steps per second with graphs, without, and on the CPU; a round done again, in the same trainer and in a new one,
    has the same bits; closed sessions give their memory back; losses that cannot be captured train all the same."""
    found: dict[str, Any] = {}
    for batch in size.batches:
        for way, on, switch in (("graphs", device(), "on"), ("eager", device(), "off"), ("CPU", "cpu", "off")):
            os.environ["RAY_FED_CUDA_GRAPHS"] = switch
            one = _trainer(batch, on)
            vector, steps = one.vector(), max(4, size.steps // 8)
            rate = _rate(lambda one=one, vector=vector, steps=steps: one.fit(vector, range(steps)), 3) * steps
            found[f"steps/s, batch {batch}, {way}"] = round(rate, 1)
    os.environ["RAY_FED_CUDA_GRAPHS"] = "on"
    return found | _bits(size) | _memory(size) | _uncapturable(size)


def _bits(size: Size) -> Found:
    one, again = _trainer(size.batches[0], device()), _trainer(size.batches[0], device())
    start = one.vector()
    first, _ = one.fit(start, range(12))
    one.forget()
    redone, _ = one.fit(start, range(12))
    restarted, _ = again.fit(start, range(12))
    return {
        "a round done again has the same bits": first.tobytes() == redone.tobytes(),
        "a new process would have them, too (new trainer)": first.tobytes() == restarted.tobytes(),
    }


def _memory(size: Size) -> Found:
    before = []
    for _ in range(size.sessions):
        one = _trainer(size.batches[0], device())
        one.fit(one.vector(), range(9))
        del one
        before.append(_allocated())
    return {f"bytes left after {size.sessions} sessions, beyond those after the first": before[-1] - before[0]}


def _uncapturable(size: Size) -> Found:
    layer = nn.Sequential(nn.Linear(73, 8), nn.BatchNorm1d(8, momentum=None), nn.ReLU(), nn.Linear(8, 1))
    cases = {"a branch on a value": (_branching, None), "a boolean mask": (_masked, None)}
    cases["BatchNorm without momentum"] = (functional.mse_loss, layer)
    found = {}
    for name, (loss, module) in cases.items():
        one = _trainer(max(8, size.batches[0]), device(), loss, module)
        _, result = one.fit(one.vector(), range(12))
        found[f"{name} trains"] = bool(np.isfinite(result.mean_loss))
    return found


def unet(size: Size) -> Found:
    """Steps per second of the U-Net in float32, TF32 and bfloat16."""
    from ray_fed.micrographs.unet import UNetDesign, autocast, seeded_unet

    found: dict[str, Any] = {}
    for pixels in size.pixels:
        image = torch.rand(4, pixels, pixels, device=device()) * 255
        mask = (torch.rand(4, pixels, pixels, device=device()) > 0.9).float()
        for name, tf32, low in (("float32", False, False), ("TF32", True, False), ("bfloat16", False, True)):
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
            module = seeded_unet(UNetDesign(size.widths, low_precision=low), 0).to(device())
            optimizer = torch.optim.Adam(module.parameters(), fused=True)

            def step(module=module, optimizer=optimizer, image=image, mask=mask, low=low) -> None:
                optimizer.zero_grad()
                with autocast(image.device, low):
                    loss = functional.binary_cross_entropy_with_logits(module(image).float().view_as(mask), mask)
                loss.backward()
                optimizer.step()

            found[f"steps/s, {pixels} px, {name}"] = round(_rate(step, max(1, size.steps // 40)), 2)
    return found


def style(size: Size) -> Found:
    """Seconds per epoch of each preset of style generators, at its own width."""
    from ray_fed.style_transfer.training import PRESETS, GeneratorTraining, Pairs

    draw = np.random.default_rng(0)
    shape = (size.style_images, size.style_pixels, size.style_pixels)
    images, masks = draw.integers(0, 256, shape, dtype=np.uint8), np.zeros(shape, np.uint8)
    masks[:, :, ::16] = 1
    found = {}
    for name, plan in PRESETS.items():
        training = GeneratorTraining(Pairs.of(images, masks, device()), replace(plan, epochs=2), 0)
        started = time.perf_counter()
        _, history = training.run()
        _synchronise()
        found[f"seconds per epoch, {name}"] = round((time.perf_counter() - started) / 2, 3)
        found[f"{name} is finite"] = bool(np.isfinite(list(history[-1].values())).all())
    return found


def attacks(size: Size) -> Found:
    """Attacks on single images: seconds for all, and the share that finds its image."""
    from ray_fed.leakage.attacks import ATTACKS
    from ray_fed.leakage.study import AttackJob, run_job

    found: dict[str, Any] = {}
    for name in ("dlg", "idlg", "wdlg", "cosine", "ours"):
        problems = tuple(range(size.attacks))
        job = AttackJob(name, "compare", "digits", "lenet", ATTACKS[name], problems, size.attacks, size.budget)
        started = time.perf_counter()
        rows = run_job(job, device()).rows
        found[f"seconds, {size.attacks} x {name}"] = round(time.perf_counter() - started, 2)
        found[f"{name}: failed"] = sum("failed" in row for row in rows)
    return found


def private(size: Size) -> Found:
    """DP-SGD: steps per second with the gradient of each example clipped."""
    from ray_fed.learning.models import seeded_mlp
    from ray_fed.learning.private_steps import PrivateSteps
    from ray_fed.learning.trainer import LocalTrainer, TrainingPlan

    batch = size.batches[0]
    x = torch.randn(8 * batch, 73, device=device())
    noisy = PrivateSteps(1.0, clip=1.0, public_examples=len(x))
    plan = TrainingPlan(seed=0, epochs=10**6, steps_per_epoch=8, num_rounds=10**6, private=noisy)
    one = LocalTrainer(seeded_mlp(73, (200, 200), 0), functional.mse_loss, x, x[:, :1], plan, "silo")
    vector, steps = one.vector(), max(2, size.steps // 10)
    rate = _rate(lambda: one.fit(vector, range(steps)), 1) * steps
    return {f"private steps/s, batch {batch}": round(rate, 1)}


def shared(size: Size) -> Found:
    """Silos that share the GPU as Ray actors: a run that is killed and gone on with ends as one that was not."""
    sizes = ",".join(["100"] * size.silos)
    words = ["formation-energy", "--rows", str(100 * size.silos + 200), "--silos", sizes, "--hidden", "32"]
    words += ["--epochs", str(size.rounds), "--rounds", str(size.rounds), "--baselines", "no"]
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        _ray_fed([*words, "--out", f"{folder}/whole"]).wait(200)
        seconds = time.perf_counter() - started
        broken, history = _ray_fed([*words, "--out", f"{folder}/broken"]), Path(folder, "broken", "history.jsonl")
        while broken.poll() is None and not (history.exists() and history.stat().st_size):
            time.sleep(0.02)
        broken.kill()
        broken.wait()
        _ray_fed(["resume", f"{folder}/broken"]).wait(200)
        models = [Path(folder, name, "models", "federated.safetensors") for name in ("whole", "broken")]
        there = all(path.is_file() for path in models)
        devices = Path(folder, "whole", "environment.json")
        return {
            "seconds of the whole run": round(seconds, 1),
            "both runs ended": there,
            "a killed and resumed run has the same bytes": there and models[0].read_bytes() == models[1].read_bytes(),
            "devices": sorted(set(json.loads(devices.read_text())["devices"].values())) if devices.is_file() else "?",
        }


def _ray_fed(words: list[str]) -> "subprocess.Popen[bytes]":
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([sys.executable, "-m", "pipelines.cli", *words], **quiet)


SECTIONS: Mapping[str, tuple[Callable[[Size], Found], int]] = {
    "environment": (environment, 20), "trainer": (trainer, 120), "unet": (unet, 90), "style": (style, 80),
    "attacks": (attacks, 100), "private": (private, 30), "shared": (shared, 90),
}  # fmt: skip
"""Name -> (what it measures, seconds it may take)."""


# ---- one process a section


def outcome(name: str, size: str, limit: float | None = None) -> dict[str, Any]:
    """Run a section in a process of its own; return what it found, or why not, and its seconds."""
    command = [sys.executable, __file__, "--inside", name, "--size", size]
    allowed, started = limit or SECTIONS[name][1], time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=allowed, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done within {allowed:g} s", "seconds": round(allowed, 1)}
    seconds = round(time.perf_counter() - started, 1)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        return {"failed": f"exit code {done.returncode}: {said[-1]}", "seconds": seconds}
    notes = [line for line in done.stderr.splitlines() if line.startswith("note: ")]
    return {"found": json.loads(done.stdout.splitlines()[-1]), "seconds": seconds, "notes": notes}


def page(outcomes: Mapping[str, Mapping[str, Any]], size: str) -> str:
    """Return what came as Markdown."""
    here = outcomes.get("environment", {}).get("found", {})
    on = here.get("gpu", "the CPU")
    failed = [name for name, came in outcomes.items() if "failed" in came]
    untrue = [f"{name}: {what}" for name, came in outcomes.items()
              for what, value in came.get("found", {}).items() if value is False and what != "bf16 units"]  # fmt: skip
    wrong = [*failed, *untrue]
    lines = [
        "# On a GPU", "",
        "- **Asked:** Does all that computes on a GPU work there, how fast, and with which promises of equal bits?",
        f"- **Answer:** On {on}, {len(outcomes) - len(failed)} of {len(outcomes)} sections ran"
        f"{'; not as promised: ' + '; '.join(wrong) if wrong else ', all as promised'}.",
        f"- **Shown by:** `python benchmarks/on_gpu.py --size {size}`", "",
    ]  # fmt: skip
    for name, came in outcomes.items():
        said = " ".join((SECTIONS[name][0].__doc__ or "").split())
        lines += [f"## {name}", f"{said} {came['seconds']:g} s.", ""]
        if "failed" in came:
            lines += [f"**Failed:** {came['failed']}", ""]
            continue
        lines += ["| what | value |", "|---|---|", *(f"| {what} | {value} |" for what, value in came["found"].items())]
        lines += ["", *(f"- {note}" for note in came["notes"]), ""]
    return "\n".join(lines)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--sections", default=",".join(SECTIONS))
    parser.add_argument("--out", default=".")
    parser.add_argument("--inside", choices=SECTIONS, help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    if given.inside:
        print(json.dumps(SECTIONS[given.inside][0](SIZES[given.size])))
        return 0
    outcomes = {}
    for name in given.sections.split(","):
        outcomes[name] = outcome(name, given.size)
        print(name, json.dumps(outcomes[name]), flush=True)
    folder = Path(given.out)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "on_gpu.json").write_text(json.dumps(outcomes, indent=1) + "\n")
    (folder / "on_gpu.md").write_text(page(outcomes, given.size))
    return int(any("failed" in came for came in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
