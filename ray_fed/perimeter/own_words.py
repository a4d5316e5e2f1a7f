"""The words behind an error's number, for whoever may read the silo's log: its owner, with the rights of files alone.

A user who plays all silos on one machine has their logs on the own disk and so sees why a file could not be read;
anybody else sees where to ask.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from ray_fed.federation.task import SiloSpec
from ray_fed.perimeter.boundary import LOG_FILE, file_name
from ray_fed.perimeter.error_policy import REFERENCE

STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
LONGEST = 1000


def words_of(text: str, specs: Iterable[SiloSpec]) -> list[str]:
    """Return what the silos' logs say under the numbers in a text; nothing of a log that is not here."""
    folders = {spec.name: spec.ledger_folder or spec.log_folder for spec in specs}
    found = (_words(folders.get(silo, ""), silo, reference) for reference, silo in REFERENCE.findall(text))
    return list(dict.fromkeys(words for words in found if words))


def _words(folder: str, silo: str, reference: str) -> str:
    try:
        content = (Path(folder) / file_name(silo) / LOG_FILE).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    entry = re.search(rf"^{STAMP} reference {reference} (.*)$", content, re.MULTILINE) if folder else None
    said = re.sub(r": (?:\w+\.)+(\w+: )", r": \1", entry[1]) if entry else ""
    return "".join(letter if letter.isprintable() else " " for letter in said)[:LONGEST]
