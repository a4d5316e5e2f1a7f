"""What a run leaves behind: lines, tables, figures, TensorBoard, report."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipelines.fedtransfer.config import FedTransferConfig
from pipelines.fedtransfer.figures import bars_figure, generators_figure, losses_figure
from pipelines.fedtransfer.results import (
    GLOBAL,
    TABLE_2,
    ModelResult,
    header,
    model_results,
    table_rows,
    verdicts,
)
from pipelines.fedtransfer.setup import is_embedded, named_data
from pipelines.fedtransfer.stage_logs import StageLogs
from pipelines.update_options import privacy_statement
from ray_fed.reporting.figure_style import save_figure
from ray_fed.reporting.report import Block, Figure, Note, Paragraph, Section, Table, write_report
from ray_fed.reporting.run_directory import RunDirectory
from ray_fed.style_transfer.artifact import CODECS

CITATION = (
    "Data privacy protection in microscopic image analysis for material data mining (FedTransfer, 2022). The paper's "
    "data are not public; embedded micrographs are drawn by this package and are nobody's."
)

NOT_COVERED = (
    "whole tiles (a tile and its synthetic copies in other styles are rows of their own, and epsilon is of one row), "
    "the style generators and amplitude spectra (made without noise, and they leave their silos), how synthetic tiles "
    "depend on a silo's labels, the trials of styles, numbers of tiles, validation losses, test scores"
)
"""By noise on the steps of the segmentation network."""
SILO_NOT_COVERED = (
    "style generators and amplitude spectra, the trials of styles, numbers of tiles, validation losses, test scores"
)
"""By noise on the silos' updates."""


class FedTransferOutcome:
    """Turns the lines of a run, finished or not, into its files."""

    def __init__(self, config: FedTransferConfig, directory: RunDirectory, command: Sequence[str]):
        self.config, self.directory, self.command = config, directory, shlex.join(command)
        self.lines: list[dict[str, Any]] = []
        self.notices: list[str] = []

    def begin(self) -> None:
        """Write what is known before the first stage."""
        self.directory.write_config({"command": self.command, **asdict(self.config)})
        self.directory.write_environment({})

    @property
    def silos(self) -> list[str]:
        return list(named_data(self.config))

    @property
    def results(self) -> list[ModelResult]:
        return model_results(self.lines, self.silos)

    def finish(self, status: str, seconds: float) -> None:
        """Write figures, report and, last, the summary."""
        figures = self._figures()
        summary = self._summary(status, seconds)
        finals = {key: value for key, value in summary.items() if f".{GLOBAL}." in key and not key.endswith("_std")}
        StageLogs(self.directory.tensorboard).outcome(finals, list(figures.values()))
        write_report(
            self.directory, "FedTransfer", summary, self._sections(figures),
            subtitle="Style generators move between silos; images stay", command=self.command,
            warnings=self._warnings(), provenance=CITATION,
        )  # fmt: skip
        self.directory.write_summary(summary)  # type: ignore[arg-type]

    def generator_facts(self) -> dict[str, dict[str, float]]:
        """Return silo -> what was told of its generator, of the first fold."""
        lines = [line for line in self.lines if line["stage"] == "generators"]
        return lines[0]["facts"] if lines else {}

    def data_facts(self) -> dict[str, dict[str, float]]:
        """Return silo -> what was told of its micrographs, of the first fold."""
        lines = [line for line in self.lines if line["stage"] == "data"]
        return lines[0]["facts"] if lines else {}

    def trials(self) -> dict[tuple[str, str, str], dict[str, float]]:
        """Return (codec, sender, receiver) -> what the style taught there, of the first fold."""
        found: dict[tuple[str, str, str], dict[str, float]] = {}
        for line in self.lines:
            codec = str(line["stage"]).removeprefix("exchange ")
            for receiver, facts in line.get("trials", {}).items() if line["fold"] == 0 else ():
                for name, value in facts.items():
                    sender, _, key = _split_fact(name)
                    found.setdefault((codec, sender, receiver), {})[key] = value
        return found

    # ---- parts

    def _warnings(self) -> list[str]:
        failed = [
            f"The generator of silo '{silo}' seems to have memorised training images; see Generators."
            for silo, told in self.generator_facts().items()
            if not told["memorisation.passed"]
        ]
        unused = [
            f"The style of '{sender}' ({codec}) is left out at '{receiver}': a network that saw only images painted "
            f"in it reaches ARI {told['painted.ari']:.3f} on real ones there, one trained on real ones "
            f"{told['real.ari']:.3f}."
            for (codec, sender, receiver), told in self.trials().items()
            if not told["used"]
        ]
        noted = [
            f"Silo '{silo}': {told['notes']:.0f} note(s) about its files are in data.txt in its own folder."
            for silo, told in self.data_facts().items()
            if told["notes"]
        ]
        chosen = ["The round was chosen on the test sets: these numbers flatter."]
        return [*self.notices, *failed, *unused, *noted, *(chosen if self.config.select_on == "test" else [])]

    def _summary(self, status: str, seconds: float) -> dict[str, object]:
        summary: dict[str, object] = {"status": status, "seconds.total": seconds, "rounds": self.config.rounds}
        summary["bytes_sent"] = sum(line.get("bytes", 0) for line in self.lines)
        for row in self.results:
            name = f"{row.method}.{row.model}" if row.method == "separate" else row.method
            for (silo, metric), cell in row.cells.items():
                summary[f"{name}.{silo}.{metric}"] = cell.mean
                if len(cell.values) > 1:
                    summary[f"{name}.{silo}.{metric}_std"] = cell.spread
        for silo, told in self.generator_facts().items():
            summary |= {f"generator.{silo}.{key}": value for key, value in told.items() if not key.startswith("epoch.")}
        for (codec, sender, receiver), told in self.trials().items():
            name = f"style.{codec}.{sender} -> {receiver}"
            summary |= {f"{name}.{key}": told[key] for key in ("painted.map", "painted.ari", "real.ari", "used")}
        for silo, told in self.data_facts().items():
            summary |= {f"data.{silo}.{key}": value for key, value in told.items()}
        for line in self.lines:
            if str(line["stage"]).startswith("exchange"):
                summary[f"{line['stage'].replace(' ', '.')}.bytes"] = line["bytes"]
        return summary | self._privacy()

    def _privacy(self) -> dict[str, object]:
        """Return what the noise guarantees, nothing where there is none: for each method by itself, and for who sees
        the models of all of them."""
        account = self.config.account(self.config.local_steps)
        if account is None:
            return {}
        spent = [line["epsilon"] for line in self.lines if "epsilon" in line]
        steps = self.config.rounds * (self.config.local_steps if account.level == "example" else 1)
        not_covered = NOT_COVERED if account.level == "example" else SILO_NOT_COVERED
        said = privacy_statement(account, max(spent, default=0.0), not_covered)
        return said | {"privacy.epsilon_all_methods": account.epsilon(steps * len(spent))}

    def _figures(self) -> dict[str, Path]:
        made: dict[str, Path] = {}
        if self.results:
            made["bars"] = self._save("bars", bars_figure(self.results, self.silos))
            made["losses"] = self._save("losses", losses_figure(self.lines, self.silos))
        if self.generator_facts():
            made["generators"] = self._save("generators", generators_figure(self.generator_facts()))
        return made | self._pictures()

    def _pictures(self) -> dict[str, Path]:
        """Copy the silos' own pictures into the run, where they show nobody's data."""
        found: dict[str, Path] = {}
        if not is_embedded(self.config):
            return found
        for silo in self.silos:
            for path in sorted((self.silo_folder / "fold0" / silo / "pictures").glob("*.png")):
                name = f"{silo}-{path.stem}"
                found[name] = self.directory.write_bytes(f"figures/{name}.png", path.read_bytes())
        return found

    @property
    def silo_folder(self) -> Path:
        """What stands for the silos' own disks."""
        return self.directory.path.absolute() / "silos"

    def _save(self, name: str, figure) -> Path:
        return save_figure(figure, self.directory.figures / f"{name}.png")

    def _sections(self, figures: Mapping[str, Path]) -> list[Section]:
        said = verdicts(self.results)
        sections = [Section("What came out", [Paragraph(text) for text in said])] if said else []
        sections += self._data_sections()
        tables = {"Table 2: alone and pooled": True, "Table 3: federated": False}
        for title, is_second in tables.items():
            rows = [row for row in self.results if (row.method in TABLE_2) == is_second]
            if rows:
                # One of all columns is, with spreads, wider than the page and hides the global ones.
                captions = {GLOBAL: self._caption()} | {silo: f"On the test set of {silo}." for silo in self.silos}
                parts = [Table(header([place]), table_rows(rows, [place]), said) for place, said in captions.items()]
                sections.append(Section(title, parts))
        if "bars" in figures:
            caption = "MAP, MVI and ARI of every method; whiskers: standard deviation over seeds and folds (Fig. 6)."
            sections.append(Section("All methods", [Figure(figures["bars"], caption), *self._splits()]))
        sections += self._style_sections(figures)
        if "losses" in figures:
            said = (
                "Weighted cross-entropy on each silo's validation tiles after every round, first seed and fold; the "
                "lowest mean is chosen."
            )
            sections.append(Section("Learning curves", [Figure(figures["losses"], said)]))
        return [*sections, *self._prediction_sections(figures), self._limits()]

    def _caption(self) -> str:
        runs = self.config.repeats * self.config.num_folds
        config = self.config
        spread = f"; mean ± standard deviation over {runs} runs" if runs > 1 else "; one run, no spread"
        return (
            f"{config.size}x{config.size} pixels, {config.rounds} rounds of {config.local_steps} steps of "
            f"{config.batch_size} images per silo for every method; the round is chosen on {config.select_on} tiles"
            f"{spread}. Global: mean over the silos' test sets. FedBN: each silo's own model on its own test set."
        )

    def _splits(self) -> list[Block]:
        """VI's two parts, which say whether grains are merged or split."""
        places = [GLOBAL, *self.silos]
        said = {"merged (under)": "vi_under", "split (over)": "vi_over"}
        return [
            Table(
                ["method", *places],
                [[row.title, *(str(row.cells[place, metric]) for place in places)] for row in self.results],
                f"Part of MVI that comes of grains {part}, bits.",
            )
            for part, metric in said.items()
        ]

    def _style_sections(self, figures: Mapping[str, Path]) -> list[Section]:
        facts = self.generator_facts()
        if not facts:
            return []
        head = [
            "silo",
            "L1 training",
            "L1 held out",
            "at one contrast",
            "nearest made / real",
            "copies",
            "memorisation",
        ]
        rows = [
            [
                silo, f"{told['memorisation.train_l1']:.3f}", f"{told['memorisation.held_out_l1']:.3f}",
                f"{told['memorisation.gap']:.2f}",
                f"{told['memorisation.nearest_generated']:.3f} / {told['memorisation.nearest_real']:.3f}",
                f"{told['memorisation.num_copies']:g} of {told['memorisation.num_generated']:g}",
                "no sign" if told["memorisation.passed"] else "signs of it",
            ]
            for silo, told in facts.items()
        ]  # fmt: skip
        note = (
            "Asked before a generator may leave: is it better on labels it has seen, and are its images nearer to the "
            "training images than real held-out ones are? A crude probe, not a proof."
        )
        codecs = [
            [silo, codec, f"{told[f'codec.{codec}.bytes']:,.0f}",
             f"{told['codec.fp32.bytes'] / told[f'codec.{codec}.bytes']:.2f}",
             _decibel(told.get(f"codec.{codec}.psnr_db"))]
            for silo, told in facts.items() for codec in CODECS
        ]  # fmt: skip
        blocks: list[Block] = [
            Table(head, rows, note),
            Table(["silo", "codec", "bytes", "times smaller", "PSNR (dB)"], codecs,
                  "PSNR: images painted with coded weights against those painted with the exact ones."),
            self._sent_table(),
            self._trial_table(),
        ]  # fmt: skip
        if "generators" in figures:
            blocks.append(Figure(figures["generators"], "Losses of the generators' training, mean over each epoch."))
        for silo in self.silos:
            if f"{silo}-styles" in figures:
                said = f"Labels of {silo} (validation), the real image, and images by each generator (Fig. 5)."
                blocks.append(Figure(figures[f"{silo}-styles"], said))
        return [Section("Generators", blocks)]

    def _data_sections(self) -> list[Section]:
        facts = self.data_facts()
        if not facts:
            return []
        parts = ("train", "validation", "test")
        head = ["silo", *(f"{part}: micrographs / tiles" for part in parts), "boundary share", "line width (px)",
                "grains a tile", "pixel size (um)"]  # fmt: skip
        rows = [
            [silo, *(f"{told[f'{part}.micrographs']:.0f} / {told[f'{part}.tiles']:.0f}" for part in parts),
             f"{told['boundary_share']:.3f}", f"{told['line_width_px']:.1f}", f"{told['grains_per_tile']:.0f}",
             f"{told['pixel_size_um']:g}" if "pixel_size_um" in told else "not known"]
            for silo, told in facts.items()
        ]  # fmt: skip
        note = (
            "Of the first fold; grains a tile: median. Micrographs of an unknown pixel size are used as they are, and "
            "models of them give no ASTM numbers. Which files were skipped or changed stands in data.txt in each "
            "silo's own folder."
        )
        return [Section("Data", [Table(head, rows, note)])]

    def _trial_table(self) -> Block:
        head = ["codec", "style of -> at", "painted only MAP / MVI / ARI", "real only MAP / MVI / ARI", "used"]
        rows = [
            [codec, f"{sender} -> {receiver}", *(
                " / ".join(f"{told[f'{kind}.{name}']:.3f}" for name in ("map", "vi", "ari"))
                for kind in ("painted", "real")
            ), "yes" if told["used"] else "no"]
            for (codec, sender, receiver), told in self.trials().items()
        ]  # fmt: skip
        note = (
            f"Networks trained for {self.config.trial_steps} steps on images painted in the style alone, and on the "
            "silo's real images alone, on the silo's own real validation images. A style is used from "
            f"{self.config.least_help:g} of the ARI by real images on."
        )
        return Table(head, rows, note)

    def _sent_table(self) -> Block:
        rows = [
            [line["stage"], pair, f"{size:,}"]
            for line in self.lines
            if "sent" in line and line["fold"] == 0
            for pair, size in line["sent"].items()
        ]
        return Table(["exchange", "from -> to", "bytes"], rows, "What moved between silos besides parameters.")

    def _prediction_sections(self, figures: Mapping[str, Path]) -> list[Section]:
        blocks = [
            Figure(path, f"Test tiles of {name.split('-')[0]}, {name.split('-', 1)[1]}.")
            for name, path in figures.items()
            if "-" in name and not name.endswith("-styles") and name.endswith(f"-seed{self.config.seed}")
        ]
        return [Section("Predictions", blocks, folded=True)] if blocks else []

    def _updates(self) -> list[str]:
        """Say how the updates of the segmentation network travelled, where that is not as float32 in the clear."""
        config, private, said = self.config, self._privacy(), []
        if config.strategy != "fed_avg":
            options = f" ({', '.join(config.strategy_options)})" if config.strategy_options else ""
            said.append(f"Updates were combined by {config.strategy}{options} in the methods that leave it open.")
        if config.compression != "none":
            said.append(f"Updates travelled as {config.compression}; what a code leaves out goes with the next one.")
        if config.secure_aggregation:
            said.append(
                "The coordinator saw the sum of a round's updates alone (secure aggregation); generators, amplitude "
                "spectra, losses and test scores travel without masks. Of two silos, each can take its own update off "
                "the sum and is left with the other's."
            )
        if private:
            unit = "tile" if private["privacy.level"] == "example" else "silo"
            said.append(
                f"Differential privacy of one {unit}: epsilon {private['privacy.epsilon']:.3g} for a method by itself, "
                f"{private['privacy.epsilon_all_methods']:.3g} for the models of all methods together, at delta "
                f"{private['privacy.delta']:g}. Not covered: {private['privacy.not_covered']}."
            )
        return said

    def _limits(self) -> Section:
        said = [
            *self._updates(),
            "A generator carries what a silo's images look like, and few statistics of its grains (in its header). "
            "What else could be drawn out of its weights is not known; the probe above is no proof.",
        ]
        if is_embedded(self.config):
            said.append(
                "Embedded micrographs: twins look like boundaries of the other style on purpose, so silos contradict "
                "each other more than the paper's do (gap below 1 brings them together)."
            )
        else:
            said.append("Pictures of the silos' own data stay in the silos' folders.")
        return Section("Limits", [Note(text) for text in said])


def _split_fact(name: str) -> tuple[str, str, str]:
    """Return (sender, ".", key) of a fact of a trial; a sender's name may have dots."""
    for key in ("painted.map", "painted.vi", "painted.ari", "real.map", "real.vi", "real.ari", "help", "used"):
        if name.endswith(f".{key}"):
            return name.removesuffix(f".{key}"), ".", key
    return name, "", ""


def _decibel(value: float | None) -> str:
    """Infinity is null in JSON."""
    return "exact" if value in (None, float("inf")) else f"{value:.1f}"
