"""Articles, the order of a source's passages: kept while the collection is prepared, then written for the passages left."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from llm_retriever.data.collection import ARTICLES_FILE
from llm_retriever.data.row_index import RowIndex
from llm_retriever.data.sources.bad_lines import BadLines
from llm_retriever.data.sources.rows import Place, identifier

STAGED_FILE = "articles.read"


class ArticleRow(NamedTuple):
    """An article of a source, as the ids of its passages in order."""

    place: Place
    id: str
    passages: list[str]


def article_row(record: dict[str, Any], place: Place) -> ArticleRow:
    """Parses the article of a record {_id, passages}.

    Raises:
        InputError: A field is missing or of another type, there are no passages, or an id is none.
    """
    name, passages = identifier(record, "_id", place), record.get("passages")
    if not isinstance(passages, list) or not passages:
        raise place.error(
            "must be a list of passage ids",
            field="passages",
            hint="write the ids in the order in which the passages follow each other",
        )
    return ArticleRow(place, name, [identifier({"passages": one}, "passages", place) for one in passages])


class Articles:
    """The articles of one preparation; they lie on disk until all passages are known.

    Args:
        draft: The collection's directory.
        row_index: Index of the passages.
        bad: Takes articles that name unknown passages.
    """

    def __init__(self, draft: Path, row_index: RowIndex, bad: BadLines) -> None:
        self.draft, self.row_index, self.bad = draft, row_index, bad

    def add(self, row: ArticleRow) -> None:
        """Adds an article; its passages need not be known yet."""
        with (self.draft / STAGED_FILE).open("a", encoding="utf-8") as staged:
            staged.write(json.dumps(row, ensure_ascii=False) + "\n")

    def write(self, is_left: Callable[[str], bool]) -> int:
        """Writes the articles, if there are any; returns how many.

        Merged passages are named by the one that was kept. Where a passage was left out, its article is parted, so that
        neighbours in the collection are neighbours in the source; parts of a single passage are not written.

        Args:
            is_left: Whether a kept passage is in the collection.

        Raises:
            InputError: An article names a passage that the source does not have.
        """
        number, staged = 0, self.draft / STAGED_FILE
        if not staged.exists():
            return 0
        with staged.open(encoding="utf-8") as lines, (self.draft / ARTICLES_FILE).open("w", encoding="utf-8") as file:
            for line in lines:
                place, name, passages = json.loads(line)
                for part in self._parts(ArticleRow(Place(*place), name, passages), is_left):
                    file.write(json.dumps({"_id": name, "passages": part}, ensure_ascii=False) + "\n")
                    number += 1
        staged.unlink()
        if not number:
            (self.draft / ARTICLES_FILE).unlink()
        return number

    def _parts(self, row: ArticleRow, is_left: Callable[[str], bool]) -> Iterator[list[str]]:
        """Yields runs of at least two consecutive passages that the collection has."""
        part: list[str] = []
        for one in row.passages:
            kept = self._kept(one, row)
            if kept is None or not is_left(kept):
                if len(part) > 1:
                    yield part
                part = []
            elif part[-1:] != [kept]:
                part.append(kept)
        if len(part) > 1:
            yield part

    def _kept(self, passage_id: str, row: ArticleRow) -> str | None:
        """Id of the passage that stands for one of the source; None if the source has none that can be used."""
        kept = self.row_index.keeper(passage_id)
        if kept is None and ("passage", passage_id) not in self.bad.ids:
            error = row.place.error(
                f"names the unknown passage {passage_id!r}", field="passages", hint="add the passage or remove its id"
            )
            self.bad.set_aside(error, {"_id": row.id, "passage": passage_id})
        return kept
