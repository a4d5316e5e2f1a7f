"""`ray-fed library page`: a library as one HTML file that opens in any browser, without a server or a network."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pipelines.model_library.catalogue import answer
from ray_fed.reporting.writing import write_atomically

COLUMNS = (
    "id", "name", "property", "unit", "relative_error", "mae", "r2", "descriptor", "method", "n_train", "n_test",
    "modelset", "federated", "licence",
)  # fmt: skip
MOST_ROWS = 20_000
"""Models in the page, the best of each property first; more make a browser slow."""
STYLE = """
body{font:14px system-ui,sans-serif;margin:2em;color:#222}table{border-collapse:collapse;margin:1em 0}
td,th{padding:.25em .6em;border-bottom:1px solid #ddd;text-align:left;white-space:nowrap}th{cursor:pointer}
input{font:inherit;padding:.3em;width:30em}
"""
SCRIPT = """
const body=document.querySelector('#models tbody'),rows=[...body.rows],count=document.querySelector('#count');
document.querySelector('input').oninput=e=>{const words=e.target.value.toLowerCase().split(/\\s+/).filter(w=>w);let n=0;
rows.forEach(r=>{const t=r.textContent.toLowerCase(),s=words.every(w=>t.includes(w));r.hidden=!s;n+=s});
count.textContent=n.toLocaleString()+' models'};
document.querySelectorAll('#models th').forEach((h,i)=>{let up=1;h.onclick=()=>{const value=r=>r.cells[i].textContent,
order=(a,b)=>{const x=value(a),y=value(b);return up*(x===''?1:y===''?-1:isNaN(x)||isNaN(y)?x.localeCompare(y):x-y)};
rows.sort(order).forEach(r=>body.append(r));up=-up}});
"""


def page(options: Mapping[str, Any], _command_line: Sequence[str]) -> int:
    """Write the page of a library, or of a place without pulling a model."""
    found = answer({**options, "failures": False}, list(COLUMNS))
    found = found.sort_values(["property", "unit", "relative_error"], na_position="last")
    out = write_atomically(Path(options["out"]), as_html(found, str(options["library"])).encode())
    print(f"{min(len(found), MOST_ROWS):,} of {len(found):,} models in {out}")
    return 0


def as_html(models: pd.DataFrame, title: str) -> str:
    """Return the page: a table of properties and one of models, with a field to search and columns to sort by."""
    best = models.groupby(["property", "unit"], dropna=False).agg(
        models=("id", "size"), data_sets=("modelset", "nunique"), best_relative_error=("relative_error", "min")
    )
    shown = models.head(MOST_ROWS).assign(id=models["id"].str[:12])
    name = html.escape(title)
    return (
        f"<!doctype html><meta charset=utf-8><title>{name}</title><style>{STYLE}</style><h1>{name}</h1>"
        f"<p>{len(models):,} models of {len(best)} properties. Relative error: mean absolute error on unseen rows over "
        "that of predicting the median; it has no unit, below 1 is better than nothing.</p>"
        f"<h2>Properties</h2>{_table(best.reset_index(), 'properties')}"
        "<h2>Models</h2><input placeholder='words, e.g. band_gap mlp rich'> "
        f"<span id=count>{len(shown):,} models</span>{_table(shown, 'models')}<script>{SCRIPT}</script>"
    )


def _table(frame: pd.DataFrame, name: str) -> str:
    head = "".join(f"<th>{html.escape(str(column).replace('_', ' '))}" for column in frame)
    rows = "".join(f"<tr>{''.join(f'<td>{_cell(value)}' for value in row)}" for row in frame.itertuples(index=False))
    return f"<table id={name}><thead><tr>{head}<tbody>{rows}</table>"


def _cell(value: Any) -> str:
    if value is None or value != value:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else html.escape(str(value))
