"""XGBoost's own collective over the same silos, each a process: error, seconds, bytes on the wire, and whether the
partition changes the model. Run it in a network of its own, so that its bytes are the only ones:

unshare -n sh -c 'ip link set lo up; python benchmarks/trees_xgboost.py --trees 600'     (pip install xgboost-cpu)
"""

import argparse
import hashlib
import multiprocessing
import os
import time
from pathlib import Path
from queue import Queue

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import xgboost  # type: ignore[import-not-found]
from trees import PARTITIONS, Rows, rows_of, setup_of
from xgboost import collective, tracker  # type: ignore[import-not-found]

OPTIONS = {
    "tree_method": "hist", "max_bin": 64, "max_depth": 7, "max_leaves": 31, "grow_policy": "lossguide", "eta": 0.06,
    "nthread": 1, "min_child_weight": 20, "lambda": 0,
}  # fmt: skip


def sent_bytes() -> int:
    """Return the bytes that went over this network's loopback."""
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[0])


def work(where: dict, number: int, x: np.ndarray, y: np.ndarray, new: np.ndarray, trees: int, out: Queue) -> None:
    start = time.process_time()
    with collective.CommunicatorContext(dmlc_task_id=str(number), **where):
        data = xgboost.QuantileDMatrix(x, y, max_bin=OPTIONS["max_bin"])
        model = xgboost.train({**OPTIONS, "colsample_bytree": 0.5, "seed": 0}, data, trees)
        spent = time.process_time() - start
        raw = bytes(model.save_raw("ubj"))
        out.put((number, spent, raw, model.predict(xgboost.DMatrix(new))))


def trained(parts: list[tuple[np.ndarray, np.ndarray]], new: np.ndarray, trees: int) -> tuple:
    """Return (processor seconds of all, bytes of a silo, model, predictions)."""
    context, before = multiprocessing.get_context("spawn"), sent_bytes()
    rabit = tracker.RabitTracker(n_workers=len(parts), host_ip="127.0.0.1")
    rabit.start()
    out = context.Queue()
    where = {**rabit.worker_args(), "dmlc_nccl_path": ""}
    workers = [
        context.Process(target=work, args=(where, number, x, y, new, trees, out)) for number, (x, y) in enumerate(parts)
    ]
    for worker in workers:
        worker.start()
    answers = sorted((out.get() for _ in workers), key=lambda each: each[0])
    for worker in workers:
        worker.join()
    rabit.wait_for()
    per_silo = (sent_bytes() - before) / len(parts)
    return sum(answer[1] for answer in answers), per_silo, answers[0][2], answers[0][3]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="embedded")
    parser.add_argument("--trees", type=int, default=600)
    options = parser.parse_args()
    print("| silos | MAE, eV/atom | sha256 of the model | processor s | MB sent of a silo |\n|:--|---:|:--|---:|---:|")
    for name in ("all rows in one place", *PARTITIONS):
        setup = setup_of(options.data, options.trees, name if name in PARTITIONS else "size")
        rows: Rows = rows_of(setup)
        found = [setup.task.load(spec) for spec in setup.silos] if name in PARTITIONS else []
        parts = [(each.features, each.targets) for each in found] or [(rows.x, rows.y)]
        spent, sent, model, predicted = trained(parts, rows.new, options.trees)
        digest, mae = hashlib.sha256(model).hexdigest()[:16], rows.error(predicted)
        where = name if name not in PARTITIONS else f"four, by {name}"
        print(f"| {where} | {mae:.4f} | {digest} | {spent:.1f} | {sent / 1e6:.0f} |", flush=True)


if __name__ == "__main__":
    main()
