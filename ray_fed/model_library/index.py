"""The index of a library, one SQLite row per card, and its query language. It can be made again from the cards.

`property = band_gap and mae < 0.5 eV and descriptor = guo73 order by mae limit 10`

    query       condition [order by FIELD [asc | desc]] [limit N]          all parts may be left out
    condition   and, or, not, parentheses over comparisons
    comparison  FIELD = | != | < | <= | > | >= VALUE [UNIT]
                FIELD in (VALUE, ...)
                FIELD like PATTERN                                         % matches any text
                FIELD                                                      a yes/no field that must be true

Values are words, 'quoted text', "quoted text", numbers, true and false. Field names: `cards.FIELDS`, or XenonPy's.
A query becomes SQL with parameters; no text of it enters the statement.
"""

import contextlib
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pandas as pd

from ray_fed.config import unknown_name
from ray_fed.errors import ConfigError, DataError, quoted
from ray_fed.model_library.cards import ALIASES, FIELDS, SEARCHED, SHOWN

_TOKEN = re.compile(
    r"\s*(?:(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w.+-]))"
    r"|(?P<text>'[^']*'|\"[^\"]*\")|(?P<operator><=|>=|!=|==|=|<|>|\(|\)|,)|(?P<word>[^\s<>=!(),'\"]+))"
)
COMPARISONS: Mapping[str, str] = {"=": "=", "==": "=", "!=": "<>", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
KEYWORDS = frozenset(("and", "or", "not", "in", "like", "order", "by", "limit", "asc", "desc"))
MAX_LENGTH, MAX_DEPTH, MAX_COMPARISONS = 10_000, 50, 500
"""Characters of a query, levels of its conditions, and comparisons: SQLite nests one level for each."""
LAYOUT = 2
"""Changes with the columns: an index of another layout is made again from the cards."""
MAX_NUMBER = 1e15
"""Whole numbers stay exact below it, in SQLite and in floats; no field of a model is larger."""
CHECKED = ("property", "descriptor", "method", "modelset", "material")
"""Fields whose values a library knows: a misspelt one is an error, not an empty answer."""


@dataclass(frozen=True)
class Token:
    """One word, number, quoted text or operator of a query."""

    kind: str
    text: str
    column: int
    """Where it starts, from 1."""


@dataclass
class Query:
    """A parsed query, ready for SQLite."""

    where: str = "1"
    """SQL with question marks."""
    parameters: list[Any] = field(default_factory=list)
    order: str = ""
    limit: int | None = None
    named: list[tuple[str, str]] = field(default_factory=list)
    """(field, value) that must exist in the library."""
    units: list[tuple[str, str]] = field(default_factory=list)
    """(field, unit) as they were given."""
    fields: set[str] = field(default_factory=set)

    @property
    def sql(self) -> str:
        """Everything after FROM."""
        limit = "" if self.limit is None else f" LIMIT {self.limit}"
        return f"WHERE {self.where}{self.order}{limit}"


def parse_query(text: str) -> Query:
    """Return the query; ConfigError names the column of the first error."""
    return _Parser(text).parse()


def field_name(name: str) -> str:
    """Return our name of a field; ConfigError with the nearest known one."""
    if name in FIELDS:
        return name
    if name in ALIASES:
        return ALIASES[name]
    raise unknown_name("field", name, [*FIELDS, *ALIASES])


class _Parser:
    """Recursive descent; one method per line of the grammar."""

    def __init__(self, text: str):
        self.text, self.at, self.depth, self.query = text, 0, 0, Query()
        self.comparisons = 0
        self.tokens = _tokens(text)

    def parse(self) -> Query:
        if self.tokens and not self._next_is("order", "limit"):
            self.query.where = self._alternatives()
        if self._took("order"):
            self._expect("by")
            self._order()
        if self._took("limit"):
            self._limit()
        if self.at < len(self.tokens):
            self._fail("'and', 'or', 'order by' or 'limit'")
        return self.query

    def _alternatives(self) -> str:
        parts = [self._conditions()]
        while self._took("or"):
            parts.append(self._conditions())
        return parts[0] if len(parts) == 1 else f"({' OR '.join(parts)})"

    def _conditions(self) -> str:
        parts = [self._condition()]
        while self._took("and"):
            parts.append(self._condition())
        return parts[0] if len(parts) == 1 else f"({' AND '.join(parts)})"

    def _condition(self) -> str:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ConfigError(f"query: 'not' and parentheses stand in one another more than {MAX_DEPTH} times")
        if self._took("not"):
            found = f"NOT {self._condition()}"
        elif self._took("("):
            inner = self._alternatives()
            self._expect(")")
            found = f"({inner})"
        else:
            found = self._comparison()
        self.depth -= 1
        return found

    def _comparison(self) -> str:
        self.comparisons += 1
        if self.comparisons > MAX_COMPARISONS:
            raise ConfigError(f"query: it has more than {MAX_COMPARISONS} comparisons; ask with 'in (...)' or 'like'")
        name = self._field()
        if self._took("in"):
            return self._members(name)
        if self._took("like"):
            self.query.parameters.append(self._take_text("a pattern such as 'jarvis%'"))
            return f'"{name}" LIKE ?'
        if self._next_is(*COMPARISONS):
            operator = COMPARISONS[self._take().text]
            return self._compared(name, operator)
        if FIELDS[name].kind != "BOOL":
            self._fail(f"a comparison after {name!r}, e.g. {name} {_example(name)}")
        return f'"{name}" = 1'

    def _compared(self, name: str, operator: str) -> str:
        self.query.parameters.append(self._value(name, operator == "="))
        if FIELDS[name].kind == "REAL" and self._is_unit():
            self.query.units.append((name, self._take().text.strip("'\"")))
            self.query.parameters.append(self.query.units[-1][1])
            return f'("{name}" {operator} ? AND "unit" = ?)'
        return f'"{name}" {operator} ?'

    def _members(self, name: str) -> str:
        self._expect("(")
        values = [self._value(name, True)]
        while self._took(","):
            values.append(self._value(name, True))
        self._expect(")")
        self.query.parameters += values
        return f'"{name}" IN ({",".join("?" * len(values))})'

    def _value(self, name: str, is_equality: bool) -> Any:
        kind, token = FIELDS[name].kind, self._peek()
        if token is None or token.kind == "operator" or (token.kind == "word" and token.text.lower() in KEYWORDS):
            self._fail(f"a value for {name!r}, e.g. {name} {_example(name)}")
        self.at += 1
        text = token.text.strip("'\"") if token.kind == "text" else token.text
        if kind == "TEXT":
            if is_equality and name in CHECKED:
                self.query.named.append((name, text))
            return text
        return self._as_number(name, kind, text, token)

    def _as_number(self, name: str, kind: str, text: str, token: Token) -> float | int:
        if kind == "BOOL" and text.lower() in ("true", "false", "yes", "no", "1", "0"):
            return int(text.lower() in ("true", "yes", "1"))
        try:
            if "_" in text:
                raise ValueError("Python reads it, and it means another number")
            number = float(text) if kind == "REAL" else int(text)
            if kind != "BOOL" and -MAX_NUMBER < number < MAX_NUMBER:
                return number
        except ValueError:
            pass
        wanted = {"REAL": "a number", "INTEGER": "a whole number", "BOOL": "true or false"}[kind]
        raise ConfigError(f"query, column {token.column}: {name!r} is {wanted}, not {quoted(text)}")

    def _is_unit(self) -> bool:
        token = self._peek()
        return token is not None and token.kind in ("word", "text") and token.text.lower() not in KEYWORDS

    def _field(self) -> str:
        token = self._peek()
        if token is None or token.kind != "word" or token.text.lower() in KEYWORDS:
            self._fail("a field name")
        self.at += 1
        try:
            name = field_name(token.text)
        except ConfigError as error:
            raise ConfigError(f"query, column {token.column}: {error}") from error
        self.query.fields.add(name)
        return name

    def _order(self) -> None:
        name = self._field()
        direction = "DESC" if self._took("desc") else "ASC"
        self._took("asc")
        self.query.order = f' ORDER BY "{name}" IS NULL, "{name}" {direction}, "id"'

    def _limit(self) -> None:
        token = self._peek()
        if token is None or not token.text.isdigit():
            self._fail("a whole number after 'limit'")
        if len(token.text) > 15 or not token.text.isdecimal():
            self._fail("a whole number below 10^15 after 'limit'")
        self.query.limit = int(self._take().text)

    def _take_text(self, wanted: str) -> str:
        token = self._peek()
        if token is None or token.kind == "operator":
            self._fail(wanted)
        return self._take().text.strip("'\"")

    def _peek(self) -> Token | None:
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def _take(self) -> Token:
        self.at += 1
        return self.tokens[self.at - 1]

    def _next_is(self, *texts: str) -> bool:
        token = self._peek()
        return token is not None and token.kind != "text" and token.text.lower() in texts

    def _took(self, text: str) -> bool:
        found = self._next_is(text)
        self.at += found
        return found

    def _expect(self, text: str) -> None:
        if not self._took(text):
            self._fail(repr(text))

    def _fail(self, wanted: str) -> NoReturn:
        token = self._peek()
        if token is None:
            raise ConfigError(f"query ends where {wanted} should follow: {quoted(self.text)}")
        raise ConfigError(f"query, column {token.column}: expected {wanted}, found {quoted(token.text)}")


def _tokens(text: str) -> list[Token]:
    if len(text) > MAX_LENGTH:
        raise ConfigError(f"query: it has {len(text):,} characters, more than {MAX_LENGTH:,}")
    unprintable = next((each for each in text if not each.isprintable() and not each.isspace()), None)
    if unprintable is not None:
        raise ConfigError(f"query: it holds the character {unprintable!a}, which no text here has")
    tokens, at = [], 0
    while at < len(text.rstrip()):
        match = _TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            start = at + len(text[at:]) - len(text[at:].lstrip())
            raise ConfigError(f"query, column {start + 1}: cannot read {text[start:][:20]!r}; is a quote not closed?")
        tokens.append(Token(match.lastgroup, match[match.lastgroup], match.start(match.lastgroup) + 1))
        at = match.end()
    return tokens


def _example(name: str) -> str:
    return {"TEXT": "= band_gap", "REAL": "< 0.5", "INTEGER": "> 100", "BOOL": "= true"}[FIELDS[name].kind]


class Index:
    """The SQLite file of a library."""

    def __init__(self, path: Path):
        self.path = path

    @contextlib.contextmanager
    def _connection(self, mode: str = "ro") -> Iterator[sqlite3.Connection]:
        """Yield a connection, "ro" to read: a library may lie where nobody may write; "rwc" to write."""
        place = f"{self.path.absolute().as_uri()}?mode={mode}"
        try:
            with contextlib.closing(sqlite3.connect(place, timeout=60, uri=True)) as connection, connection:
                yield connection
        except sqlite3.DatabaseError as error:
            raise DataError(
                f"{self.path}: the index cannot be used ({error}); make it again: ray-fed library reindex"
            ) from error

    def is_current(self) -> bool:
        """Whether there is an index with the columns of this version."""
        if not self.path.is_file():
            return False
        with self._connection() as connection:
            return connection.execute("PRAGMA user_version").fetchone()[0] == LAYOUT

    def create(self) -> None:
        """Make an empty index in the place of any other."""
        columns = ", ".join(
            f'"{name}" {"INTEGER" if field.kind == "BOOL" else field.kind}' for name, field in FIELDS.items()
        )
        with self._connection("rwc") as connection:
            connection.execute("DROP TABLE IF EXISTS models")
            connection.execute(f"PRAGMA user_version = {LAYOUT}")
            connection.execute(f'CREATE TABLE models ({columns}, PRIMARY KEY ("id"))')
            for name in SEARCHED:
                connection.execute(f'CREATE INDEX "by_{name}" ON models ("{name}")')

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows, all or none; a row with an id that is there already changes nothing."""
        names = list(FIELDS)
        statement = f"INSERT OR IGNORE INTO models VALUES ({','.join('?' * len(names))})"
        with self._connection("rwc") as connection:
            connection.executemany(statement, ([row.get(name) for name in names] for row in rows))
        with self._connection("rwc") as connection:
            # Statistics let SQLite choose between its indexes.
            connection.execute("ANALYZE")

    def mark_deprecated(self, ids: Sequence[str]) -> None:
        """Set `deprecated` for these models."""
        with self._connection("rwc") as connection:
            connection.executemany('UPDATE models SET "deprecated" = 1 WHERE "id" = ?', ([item] for item in ids))

    def remove(self, ids: Sequence[str]) -> None:
        """Take rows out: their files are not there any more, or damaged."""
        with self._connection("rwc") as connection:
            connection.executemany('DELETE FROM models WHERE "id" = ?', ([item] for item in ids))

    def rows(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """Return whole rows, for another index; an id that is not there has none."""
        names = list(FIELDS)
        columns = ", ".join(f'"{name}"' for name in names)
        found = []
        with self._connection() as connection:
            for model_id in ids:
                row = connection.execute(f'SELECT {columns} FROM models WHERE "id" = ?', [model_id]).fetchone()
                found += [dict(zip(names, row, strict=True))] if row else []
        return found

    def ids(self, prefix: str = "") -> list[str]:
        """Return the sorted ids of models (not of failures) that start with `prefix`."""
        with self._connection() as connection:
            found = connection.execute(
                'SELECT "id" FROM models WHERE "succeed" = 1 AND substr("id", 1, ?) = ? ORDER BY "id"',
                (len(prefix), prefix),
            )
            return [row[0] for row in found]

    def values(self, name: str) -> list[str]:
        """Return the different values of a column, sorted."""
        with self._connection() as connection:
            found = connection.execute(f'SELECT DISTINCT "{field_name(name)}" FROM models')
            return sorted(str(row[0]) for row in found if row[0] is not None)

    def query(self, text: str = "", columns: Sequence[str] | None = None, failures: bool = False) -> pd.DataFrame:
        """Return the models that answer a query, one a row; deprecated ones only where it asks about `deprecated`.

        columns   fields to return; SHOWN if not given
        failures  also the models that failed (they answer `succeed = false` in any case)

        ConfigError for an invalid query, an unknown property, or a bound in another unit.
        """
        parsed = self._checked(text)
        names = [field_name(name) for name in columns or SHOWN]
        if not failures and "succeed" not in parsed.fields:
            parsed.where = f'"succeed" = 1 AND ({parsed.where})'
        if "deprecated" not in parsed.fields:
            parsed.where = f'"deprecated" = 0 AND ({parsed.where})'
        chosen = ", ".join(f'"{name}"' for name in names)
        with self._connection() as connection:
            rows = connection.execute(f"SELECT {chosen} FROM models {parsed.sql}", parsed.parameters).fetchall()
            if not rows and parsed.units:
                self._check_units(connection, parsed)
        return pd.DataFrame.from_records(rows, columns=list(columns or SHOWN))

    def _checked(self, text: str) -> Query:
        parsed = parse_query(text)
        for name, value in parsed.named:
            known = self.values(name)
            if value not in known:
                raise (
                    unknown_name(name, value, known)
                    if known
                    else ConfigError(f"unknown {name} {value!r}; the library is empty")
                )
        return parsed

    def _check_units(self, connection: sqlite3.Connection, parsed: Query) -> None:
        """Raise when nothing was found because the unit is not that of the models asked for."""
        where = parsed.where.replace('AND "unit" = ?', "")
        given = [unit for _, unit in parsed.units]
        remaining = list(parsed.parameters)
        for unit in given:
            remaining.remove(unit)
        found = {row[0] for row in connection.execute(f"SELECT DISTINCT unit FROM models WHERE {where}", remaining)}
        for name, unit in parsed.units:
            if found and unit not in found:
                known = ", ".join(sorted(map(str, found)))
                raise ConfigError(f"unit mismatch: {name} of these models is in {known}, not {unit}; convert the bound")
