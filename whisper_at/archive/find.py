"""Where a word, a text or a sound occurs in an archive: SQL by DuckDB over its tables."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..tagging.labels import audioset_classes, descendants
from .items import is_url
from .schema import events_schema, files_schema
from .storage import absolute

if TYPE_CHECKING:
    import duckdb

PUNCTUATION = " \t.,;:!?…\"'“”‘’«»()[]{}¿¡—–-。，、！？："  # noqa: RUF001 - each of them is meant
"""What is cut off words before they are compared."""


@dataclass(frozen=True)
class Query:
    """What is looked for. All of it has to occur in one recording, no more than `within` seconds apart.

    Attributes
    ----------
    texts : tuple of str
        Parts of segments' texts, in any case.
    words : tuple of str
        Words, in any case; ``*`` stands for any letters.
    sounds : tuple of str
        Classes of sound; one of AudioSet's stands for those below it, too: Laughter for Giggle.
    within : float
        Seconds.
    """

    texts: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    sounds: tuple[str, ...] = ()
    within: float = 5.0

    def __post_init__(self) -> None:
        if not (self.texts or self.words or self.sounds):
            raise ValueError("nothing is looked for: give a text, a word or a sound")
        if not self.within >= 0:
            raise ValueError(f"within must be 0 seconds or more, not {self.within}")


class Match(NamedTuple):
    """A place in a recording.

    Attributes
    ----------
    path : str
        Of the recording, with its member of a tar file or table behind a colon.
    start, end : float
        Seconds at which what was asked for first occurs.
    text : str
        The segment that it is in, or the name of the sound.
    near : tuple of str
        What else was asked for, as it was found.
    """

    path: str
    start: float
    end: float
    text: str
    near: tuple[str, ...] = ()


def find(folder: str | os.PathLike[str], query: Query, limit: int | None = None) -> Iterator[Match]:
    """Yield the places of an archive where everything that is looked for occurs, by path and time.

    Parameters
    ----------
    folder : str or path
        Of the dataset, or its URL.
    query : Query
        What is looked for.
    limit : int, optional
        Yield no more than these.

    Raises
    ------
    FileNotFoundError
        If there is no dataset.
    """
    sql, parameters = build_sql(query, limit)
    with connect(folder) as connection:
        cursor = connection.execute(sql, parameters)
        while rows := cursor.fetchmany(1000):
            for path, start, end, text, *near in rows:
                yield Match(path, start, end, text.strip(), tuple(name.strip() for name in near))


def run_sql(folder: str | os.PathLike[str], sql: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Return names of columns, and rows, of a query over the tables ``files`` and ``events``.

    It can read the dataset and nothing else of the machine, and write nothing.

    Raises
    ------
    ValueError
        If it is no query.
    """
    import duckdb

    with connect(folder) as connection:
        kinds = {statement.type for statement in connection.extract_statements(sql)}
        if kinds - {duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN}:
            raise ValueError("only queries are run: SELECT … FROM files, or FROM events")
        cursor = connection.execute(sql)
        return [column[0] for column in cursor.description or ()], cursor.fetchall()


def connect(folder: str | os.PathLike[str]) -> duckdb.DuckDBPyConnection:
    """Return a connection to the tables ``files`` and ``events`` of an archive, which can open nothing else."""
    import duckdb

    connection = duckdb.connect(":memory:")
    location = absolute(folder if is_url(os.fspath(folder)) else os.path.expanduser(folder))
    if is_url(location):
        import fsspec

        filesystem, root = fsspec.core.url_to_fs(location)
        connection.register_filesystem(filesystem)
        names = filesystem.glob(f"{_without_magic(root)}/files/part-*.parquet")
        location = filesystem.unstrip_protocol(root)
    else:
        names = list((Path(location) / "files").glob("part-*.parquet"))
    if not names:
        raise FileNotFoundError(f"there is no archive in {folder}: whisper-at archive writes one")
    places = {location, _without_magic(location)}  # patterns are compared with these as they are written
    connection.execute(f"SET allowed_directories = [{', '.join(map(_quoted, places))}]")
    connection.execute("SET enable_external_access = false")
    for name, schema in (("files", files_schema()), ("events", events_schema())):
        pattern = _quoted(_without_magic(f"{location}/{name}") + "/part-*.parquet")
        columns = ", ".join(f'"{column}"' for column in schema.names)
        connection.execute(f"CREATE VIEW {name} AS SELECT {columns} FROM read_parquet({pattern})")
    connection.execute("SET lock_configuration = true")
    return connection


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _without_magic(path: str) -> str:
    """Return a path as a pattern that matches it alone."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in path)


def build_sql(query: Query, limit: int | None = None) -> tuple[str, list[Any]]:
    """Return the query in SQL, and its parameters."""
    parts: list[tuple[str, list[Any]]] = [
        *((_TEXT, [f"%{_escaped(text)}%"]) for text in query.texts),
        *((_WORD, [_escaped(word.lower()).replace("*", "%")] * 2) for word in query.words),
        *((_SOUND, [f"%{_escaped(sound.lower())}%", classes_named(sound)]) for sound in query.sounds),
    ]
    tables = [f"c{i} AS ({sql})" for i, (sql, _) in enumerate(parts)]
    parameters = [parameter for _, values in parts for parameter in values]
    near: list[str] = []
    for i in range(1, len(parts)):
        before = "c0" if i == 1 else f"m{i - 1}"
        kept = ", ".join(["id, path, start, stop, text", *near])
        columns = ", ".join(f"a.{name.strip()}" for name in kept.split(","))
        tables.append(
            f"m{i} AS (SELECT {columns}, arg_min(b.hit, greatest(b.start - a.stop, a.start - b.stop, 0)) AS near{i} "
            f"FROM {before} a JOIN c{i} b ON a.id = b.id AND b.start - a.stop <= ? AND a.start - b.stop <= ? "
            f"GROUP BY {columns})"
        )
        near.append(f"near{i}")
        parameters += [query.within] * 2
    last = "c0" if not near else f"m{len(parts) - 1}"
    columns = ", ".join(["path", "start", "stop", "text", *near])
    sql = f"WITH {', '.join(tables)} SELECT {columns} FROM {last} ORDER BY path, start, stop"
    return sql + (f" LIMIT {int(limit)}" if limit is not None else ""), parameters


_PLACE = "CASE WHEN member IS NULL THEN path ELSE path || ':' || member END AS path"


def _bare(column: str) -> str:
    """Return the SQL of a word without its punctuation, in lower case."""
    return f"trim(lower({column}), {_quoted(PUNCTUATION)})"


_TEXT = rf"""
SELECT id, {_PLACE}, s.start AS start, s."end" AS stop, s.text AS text, s.text AS hit
FROM files, UNNEST(segments) AS t(s) WHERE s.text ILIKE ? ESCAPE '\'"""
# where words were not timed, one is as long as its segment
_WORD = rf"""
SELECT id, {_PLACE}, w.start AS start, w."end" AS stop, segments[w.segment + 1].text AS text, w.word AS hit
FROM files, UNNEST(words) AS t(w) WHERE {_bare("w.word")} LIKE ? ESCAPE '\'
UNION ALL
SELECT id, path, start, stop, text, word AS hit FROM (
  SELECT id, {_PLACE}, s.start AS start, s."end" AS stop, s.text AS text, UNNEST(string_split(s.text, ' ')) AS word
  FROM (SELECT * FROM files WHERE words IS NULL), UNNEST(segments) AS t(s)
) WHERE {_bare("word")} LIKE ? ESCAPE '\'"""
_SOUND = rf"""
SELECT id, {_PLACE}, start, "end" AS stop, name AS text, name AS hit
FROM events WHERE CASE WHEN mid IS NULL THEN lower(name) LIKE ? ESCAPE '\' ELSE list_contains(?, name) END"""


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def classes_named(sound: str) -> list[str]:
    """Return AudioSet's classes that a name means: of that name, or with it in theirs, and those below.

    Examples
    --------
    >>> classes_named("Laughter")[:3]
    ['Laughter', 'Baby laughter', 'Giggle']
    """
    classes = audioset_classes()
    wanted = sound.strip().lower()
    named = {i for i, name in enumerate(classes.names) if name.lower() == wanted}
    named = named or {i for i, name in enumerate(classes.names) if wanted in name.lower()}
    below = {other for index in named for other in descendants(index)}
    return [classes.names[index] for index in sorted(named | below)]
