"""BEIR: `corpus.jsonl` {_id, title, text}, `queries.jsonl` {_id, text}, `qrels/<split>.tsv` (query, passage, grade).

On the Hugging Face hub the same three come as parquet, JSON or CSV in folders of shards; all are read. An optional
`articles.jsonl` {_id, passages} says which passages follow each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from llm_retriever.data.articles import ArticleRow, article_row
from llm_retriever.data.sources.bad_lines import BadLines
from llm_retriever.data.sources.qrels import QRELS_SUFFIXES, SHARD, judgments, split_in_name
from llm_retriever.data.sources.reading import records
from llm_retriever.data.sources.rows import (
    PASSAGE_IDS,
    QUERY_IDS,
    QueryRow,
    Row,
    id_field,
    identifier,
    passage_row,
    text_of,
)
from llm_retriever.data.sources.source_files import NO_DATA, SUFFIXES, SourceFile, source_file
from llm_retriever.errors import InputError


class BeirDirectory:
    """A directory in BEIR's layout; see `llm_retriever.data.sources.Source` for what is done with it."""

    def __init__(self, directory: Path, shown: str) -> None:
        self.directory, self.shown = directory, shown

    @classmethod
    def recognises(cls, directory: Path) -> bool:
        """Whether there is a corpus, and queries or qrels beside it."""
        parts = [bool(_files(directory, name, SUFFIXES)) for name in ("corpus", "queries")]
        return all(parts) or (any(parts) and (directory / "qrels").is_dir())

    def rows(self, bad: BadLines) -> Iterator[Row | ArticleRow]:
        """Yields queries and judgments first: they are small, so that what is wrong with them shows early."""
        yield from self._queries(bad)
        yield from self._judgments(bad)
        yield from self._passages(bad)
        yield from self._articles(bad)

    def _queries(self, bad: BadLines) -> Iterator[Row]:
        for file in self._named("queries"):
            for place, record in records(file, bad):
                field = id_field(record, QUERY_IDS)
                bad.note_fields(record, (field, "text"))
                with bad.tolerated(record, kind="query", row_id=record.get(field)):
                    yield QueryRow(place, identifier(record, field, place), text_of(record, "text", place))

    def _passages(self, bad: BadLines) -> Iterator[Row]:
        for file in self._named("corpus"):
            for place, record in records(file, bad):
                field = id_field(record, PASSAGE_IDS)
                bad.note_fields(record, (field, "title", "text"))
                with bad.tolerated(record, kind="passage", row_id=record.get(field)):
                    yield passage_row(record, place)

    def _articles(self, bad: BadLines) -> Iterator[ArticleRow]:
        for path in _files(self.directory, "articles", SUFFIXES):
            for place, record in records(self._source_file(path), bad):
                with bad.tolerated(record):
                    yield article_row(record, place)

    def _named(self, name: str) -> list[SourceFile]:
        found = _files(self.directory, name, SUFFIXES)
        if not found:
            file = f"{self.shown}/{name}.jsonl"
            raise InputError("no such file", file=file, hint="a BEIR source has corpus.jsonl, queries.jsonl and qrels/")
        return [self._source_file(path) for path in found]

    def _judgments(self, bad: BadLines) -> Iterator[Row]:
        files_of_splits = self._qrels()
        if not files_of_splits:
            raise InputError(
                "no qrels: nothing says which passages answer which query",
                file=f"{self.shown}/qrels",
                hint="add qrels/train.tsv (query-id, corpus-id, score) and one file for each evaluation split",
            )
        for path, split in files_of_splits:
            yield from judgments(self._source_file(path), split, bad)

    def _qrels(self) -> list[tuple[Path, str]]:
        """Finds files of judgments and their splits: those of a folder, and those beside the corpus, `qrels.<split>`."""
        folders = [self.directory / name for name in ("qrels", "default", "data")]
        inside = next((paths for folder in folders if (paths := _inside(folder, QRELS_SUFFIXES))), [])
        beside = [(path, split) for path in _inside(self.directory, QRELS_SUFFIXES) if (split := split_in_name(path))]
        return [(path, split_in_name(path) or SHARD.sub("", path.name.split(".")[0])) for path in inside] + beside

    def _source_file(self, path: Path) -> SourceFile:
        return source_file(path, self.directory, self.shown)


def _files(directory: Path, name: str, suffixes: tuple[str, ...]) -> list[Path]:
    """Finds the file `name` with one of the suffixes, or the shards in the folder `name`."""
    single = [directory / (name + suffix) for suffix in suffixes]
    return [path for path in single if path.is_file()][:1] or _inside(directory / name, suffixes)


def _inside(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    if not folder.is_dir():
        return []
    paths = (path for path in folder.iterdir() if path.name.endswith(suffixes) and not NO_DATA.fullmatch(path.name))
    return sorted(path for path in paths if path.is_file())
