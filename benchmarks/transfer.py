"""Transfer between all properties of a library: the transferability matrix, and figures like Yamada et al. 2019.

ray-fed library build --library LIB --source ../shared/datasets --networks 48
OMP_NUM_THREADS=1 python benchmarks/transfer.py LIB ../shared/datasets OUT [refractive] [extrapolate] [matrix]
"""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from sklearn.manifold import TSNE

from pipelines.model_library.figures import CV, DIRECT, HELD_OUT, label_axes
from ray_fed.model_library import predictors
from ray_fed.model_library.cards import correlation
from ray_fed.model_library.descriptors import make_descriptor
from ray_fed.model_library.few_rows import FITTERS, NUM_TREES, PREDICTORS
from ray_fed.model_library.heads import cross_validated, fitted, ridge
from ray_fed.model_library.property_catalogue import shared_tables
from ray_fed.model_library.property_tables import PropertyTable
from ray_fed.model_library.selection import Protocol, draw_rows
from ray_fed.model_library.store import Library
from ray_fed.model_library.transfer import target_and_sources
from ray_fed.randomness import generator
from ray_fed.reporting.figure_style import LABEL_SIZE, TICK_SIZE, as_label, new_figure, save_figure

NETWORKS, DRAWS = 6, 20
OTHERS = ("pi1070", "dielectric")
"""Data sets of the matrix that are not tables of formulas."""
PROTOCOL = Protocol(rows=50, max_held_out=300)


def matrix(library: Library, tables: dict[str, PropertyTable], out: Path) -> None:
    """Write held-out MAE of the mean of six sources of each property over that of no transfer, 20 draws."""
    keys = [
        key for key, table in tables.items() if table.kind == "formula" or table.modelset in ("pi1070", "dielectric")
    ]
    models, owners = [], []
    for key in keys:
        modelset, name = key.split("/")
        query = (
            f"modelset = '{modelset}' and property = '{name}' and method = mlp and descriptor = guo65 limit {NETWORKS}"
        )
        found = library.query(query, ["id"])["id"]
        models += [library.load(model_id) for model_id in found]
        owners += [key] * len(found)
    owner = dict(zip([card.id for _, card in models], owners, strict=True))
    values = np.stack([row(tables[key], models, owner, keys) for key in keys])
    np.savetxt(out / "matrix.csv", values, "%.4f", ",", header=",".join(keys))
    short = [f"{tables[key].property_name} ({tables[key].modelset.split('_')[0]})" for key in keys]
    save_figure(matrix_figure(values, short, short), out / "matrix.png")
    off = values[~np.eye(len(keys), dtype=bool)]
    print(f"matrix: {len(keys)} x {len(keys)}; {np.mean(off < 1):.0%} of the pairs beat no transfer, "
          f"{np.mean(off < 0.9):.0%} by 10 % or more; median {np.median(off):.3f}")  # fmt: skip
    for at in np.argsort(np.where(np.eye(len(keys), dtype=bool), np.inf, values), axis=None)[:8]:
        target, source = np.unravel_index(at, values.shape)
        print(f"  {keys[source]} -> {keys[target]}: {values[target, source]:.2f}")
    best = np.where(np.eye(len(keys), dtype=bool), np.inf, values).min(1)
    print(f"  targets that some other property helps by 5 % or more: {np.sum(best < 0.95)} of {len(keys)}")


def learned(
    descriptors: Mapping[str, np.ndarray], inside: np.ndarray, wanted: np.ndarray, outside: np.ndarray, seed: int
) -> dict[str, np.ndarray]:
    """Return what each learner without a source predicts, the mean over the descriptors."""
    return {
        name: np.mean(
            [PREDICTORS[name](fit(x[inside], wanted, seed, NUM_TREES), x[outside]) for x in descriptors.values()],
            axis=0,
        )
        for name, fit in FITTERS.items()
    }


def row(table: PropertyTable, models: list, owner: dict[str, str], keys: list[str]) -> np.ndarray:
    """Return one target's row of the matrix."""
    prepared = target_and_sources(table.sample(1500, generator(0, "matrix", table.key)), models)
    target, sources = prepared.target, prepared.sources
    of = np.array([owner[model_id] for model_id in sources.ids])
    errors, direct, descriptors = np.zeros((DRAWS, len(keys))), np.zeros(DRAWS), target.descriptors
    for number in range(DRAWS):
        inside, outside = draw_rows(target.groups, PROTOCOL, number)
        wanted, truth = target.values[inside], target.values[outside]
        predicted = fitted(ridge, sources.rows(inside), wanted, sources.rows(outside), 0)
        new = learned(descriptors, inside, wanted, outside, number)
        direct[number] = np.abs(np.mean(list(new.values()), axis=0) - truth).mean()
        for at, key in enumerate(keys):
            errors[number, at] = np.abs(predicted[of == key].mean(0) - truth).mean()
    return errors.mean(0) / direct.mean()


def extrapolate(library: Library, tables: dict[str, PropertyTable], out: Path) -> None:
    """(d2): learn kappa from 45 crystals that are not among the highest, rank the 14 of highest kappa and the rest."""
    table = tables["ltc103/lattice_thermal_conductivity"]
    ids = library.query("method = mlp and modelset like 'aflow%' and not property = thermal_conductivity", ["id"])["id"]
    prepared = target_and_sources(table, [library.load(model_id) for model_id in ids])
    target, sources = prepared.target, prepared.sources
    order = np.argsort(-target.values)
    top = order[:14]
    others = np.flatnonzero(~np.isin(target.groups, target.groups[top]))
    print(f"(d2) {len(ids)} sources, {len(others)} crystals of other formulas than the 14 of highest kappa")
    rows: dict[str, list] = {**{name: [] for name in (*FITTERS, "mean of the four")}, "mean of 10 best by CV": []}
    for number in range(20):
        draw = generator(0, "ltc", number).permutation(others)
        inside, rest = draw[:45], draw[45:]
        outside = np.concatenate((top, rest))
        wanted, truth = target.values[inside], target.values[outside]
        folds = np.array_split(generator(0, "ltc folds", number).permutation(45), 10)
        cv = np.abs(cross_validated(ridge, sources.rows(inside), wanted, folds, 0) - wanted).mean(1)
        predicted = fitted(ridge, sources.rows(inside), wanted, sources.rows(outside), 0)[np.argsort(cv)[:10]].mean(0)
        alone = learned(target.descriptors, inside, wanted, outside, number)
        guesses = (*alone.values(), np.mean(list(alone.values()), axis=0), predicted)
        for name, guess in zip(rows, guesses, strict=True):
            found = set(np.argsort(-guess)[:14].tolist()) & set(range(14))
            rows[name].append((np.abs(guess - truth)[:14].mean(), correlation(guess, truth), len(found)))
    for name, values in rows.items():
        mean, spread = np.mean(values, 0), np.std(values, 0, ddof=1)
        print(f"  {name}: MAE on the 14 {mean[0]:.3f} ± {spread[0]:.3f} log10(W/mK), r over all held out "
              f"{mean[1]:.2f} ± {spread[1]:.2f}, found {mean[2]:.1f} ± {spread[2]:.1f} of the 14")  # fmt: skip
    save_figure(
        histogram_figure({"others": target.values[others], "14 highest": target.values[top]}, table.unit),
        out / "kappa.png",
    )


def refractive(library: Library, tables: dict[str, PropertyTable], out: Path) -> None:
    """(e): direct prediction of polymers by inorganic models, and maps of their descriptors and neurons."""
    inorganic, polymers = tables["dielectric/refractive_index"], tables["pi1070/refractive_index"]
    rich = make_descriptor("rich")
    x, y = rich.transform(inorganic.frame)[0], rich.transform(polymers.frame)[0]
    ids = library.query("modelset = dielectric and property = refractive_index and method = mlp and descriptor = rich",
                        ["id"])["id"]  # fmt: skip
    truth = polymers.frame["value"].to_numpy()
    errors = [np.abs(predictors.predict(*library.load(model_id), y) - truth).mean() for model_id in ids]
    blind = np.abs(truth - np.median(truth)).mean()
    print(f"(e) {len(ids)} inorganic models on {len(truth)} polymers as they are: MAE {np.mean(errors):.3f} "
          f"(best {np.min(errors):.3f}); predicting the polymers' median: {blind:.3f}")  # fmt: skip
    both = np.vstack((x, y))
    both = np.clip((both - both.mean(0)) / np.where(both.std(0) > 0, both.std(0), 1), -5, 5)
    points = TSNE(2, random_state=0, init="pca").fit_transform(both)
    names = ["inorganic"] * len(x) + ["polymers"] * len(y)
    save_figure(map_figure(points, names, "240 compositional descriptors"), out / "tsne.png")
    arrays, card = library.load(ids.iloc[0])
    order = np.argsort(truth)
    layers = predictors.forward(arrays, predictors.standardised(arrays, card, y[order]))[:-1]
    save_figure(neurons_figure(layers, "refractive index of polymers"), out / "neurons.png")


def main() -> None:
    library, tables, out = Library.open(sys.argv[1]), shared_tables(sys.argv[2]), Path(sys.argv[3])
    out.mkdir(parents=True, exist_ok=True)
    wanted = sys.argv[4:] or ["refractive", "extrapolate", "matrix"]
    for part in (part for part in (refractive, extrapolate, matrix) if part.__name__ in wanted):
        start = time.perf_counter()
        part(library, tables, out)
        print(f"  {time.perf_counter() - start:.0f} s", flush=True)


# ---- figures


def neurons_figure(layers: Sequence[np.ndarray], name: str) -> Figure:
    """Return heat maps of hidden layers, rows sorted by the property by the caller (Fig. 2c)."""
    figure = new_figure(2.3 * len(layers), 3.4)
    for number, (axes, layer) in enumerate(zip(np.atleast_1d(figure.subplots(1, len(layers))), layers, strict=True), 1):
        spread = layer.std(0)
        scaled = (layer - layer.mean(0)) / np.where(spread > 0, spread, 1)
        order = np.argsort([np.corrcoef(column, np.arange(len(layer)))[0, 1] if column.std() else 0
                            for column in scaled.T])  # fmt: skip
        axes.imshow(scaled[:, order], aspect="auto", cmap="coolwarm", vmin=-2.5, vmax=2.5, interpolation="nearest")
        axes.set_yticks([])
        label_axes(axes, f"layer {number}", f"{layer.shape[1]} neurons", f"rows by rising {as_label(name)}"
               if number == 1 else "")  # fmt: skip
    return figure


def map_figure(points: np.ndarray, names: Sequence[str], title: str) -> Figure:
    """Return a two-dimensional map of descriptors coloured by data set (Fig. 6b)."""
    figure = new_figure(5.2, 4.4)
    axes = figure.subplots()
    for name, colour in zip(dict.fromkeys(names), (HELD_OUT, CV, DIRECT, "#009e73"), strict=False):
        chosen = np.array([other == name for other in names])
        axes.scatter(*points[chosen].T, s=6, color=colour, alpha=0.6, linewidths=0, label=as_label(name))
    label_axes(axes, title, "t-SNE 1", "t-SNE 2")
    axes.legend(fontsize=TICK_SIZE, frameon=False, markerscale=2)
    return figure


def matrix_figure(values: np.ndarray, sources: Sequence[str], targets: Sequence[str]) -> Figure:
    """Return the transferability matrix: held-out MAE over that of the direct model; blue helps, red hurts."""
    figure = new_figure(2.6 + 0.34 * len(sources), 2.4 + 0.3 * len(targets))
    axes = figure.subplots()
    change = 100 * (values - 1)
    image = axes.imshow(change, cmap="RdBu_r", vmin=-40, vmax=40, aspect="auto")
    axes.set_xticks(range(len(sources)), [as_label(name, 40, 1) for name in sources], rotation=90, fontsize=7)
    axes.set_yticks(range(len(targets)), [as_label(name, 40, 1) for name in targets], fontsize=7)
    axes.set_xlabel("source property", fontsize=LABEL_SIZE)
    axes.set_ylabel("target property", fontsize=LABEL_SIZE)
    bar = figure.colorbar(image, ax=axes, shrink=0.8)
    bar.set_label("held-out MAE against no transfer, %", fontsize=TICK_SIZE)
    return figure


def histogram_figure(values: Mapping[str, np.ndarray], label: str) -> Figure:
    """Return overlaid histograms (Fig. 5c)."""
    figure = new_figure(5.2, 3.6)
    axes = figure.subplots()
    edges = np.histogram_bin_edges(np.concatenate(list(values.values())), 18).tolist()
    for (name, series), colour in zip(values.items(), (HELD_OUT, CV, DIRECT), strict=False):
        axes.hist(series, edges, color=colour, alpha=0.6, label=as_label(name))
    label_axes(axes, "", label, "materials")
    axes.legend(fontsize=TICK_SIZE, frameon=False)
    return figure


if __name__ == "__main__":
    main()
