"""Prepares a collection from the rows of a source: checks them against each other, merges, splits, writes, counts.

Rows are looked at one at a time; what must be remembered of them lies in a `RowIndex` on disk.
"""

from __future__ import annotations

import contextlib
import json
import platform
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

import llm_retriever
from llm_retriever import files
from llm_retriever.data import collection, scripts
from llm_retriever.data.articles import ArticleRow, Articles
from llm_retriever.data.collection import Passage, same_texts
from llm_retriever.data.row_index import Finding, RowIndex
from llm_retriever.data.scripts import has_unspaced
from llm_retriever.data.sources import Source, opened_source
from llm_retriever.data.sources.bad_lines import BadLines
from llm_retriever.data.sources.rows import JudgmentRow, PassageRow, QueryRow, Row, TeacherRow
from llm_retriever.data.sources.source_files import unread
from llm_retriever.errors import InputError
from llm_retriever.files import layouts
from llm_retriever.metrics.conventions import FOR_CHOICES, TRAINING_SPLIT
from llm_retriever.progress import Progress
from llm_retriever.settings import CorpusSettings, is_unset

LONGEST_COUNTED = 4096
UNITS_BETWEEN_REPORTS = 1000
HELDOUT_QUERIES = 500
OWN_PASSAGES_COMPARED = 1000
"""So many queries say whether the passages of the queries' ids are the queries: all have one id where ids are numbers."""


def prepare(settings: CorpusSettings, directory: Path, *, tolerate_empty: bool = False) -> dict[str, Any]:
    """Reads a source, validates and normalises it, and writes the collection; returns its manifest.

    Args:
        settings: What to read, and how.
        directory: The collection to write.
        tolerate_empty: Whether passages with neither title nor text, which published collections have, are left out with
            their judgments instead of counting as bad lines; the manifest counts them as `passages_empty`.

    Raises:
        InputError: The source cannot be used; `directory` is left as it was.
    """
    with (
        opened_source(settings.uri, settings.format) as source,
        layouts.COLLECTION.output(directory) as draft,
    ):
        with _work(settings, source, draft, tolerate_empty) as work:
            work.read()
            work.check()
            work.split()
            work.write()
            manifest = work.manifest()
        files.write_json(draft / collection.MANIFEST_FILE, manifest)
        return manifest


@contextlib.contextmanager
def _work(settings: CorpusSettings, source: Source, draft: Path, tolerate_empty: bool) -> Iterator[Preparation]:
    path = draft / "row_index.sqlite"
    row_index = RowIndex(path)
    try:
        yield Preparation(settings, source, draft, row_index, tolerate_empty)
    finally:
        row_index.close()
        path.unlink()


class Lengths:
    """Counts of the words of texts, as `scripts.words` finds them; memory does not grow with the texts."""

    def __init__(self) -> None:
        self._numbers = [0] * (LONGEST_COUNTED + 1)
        self._words = self._texts = self._longest = self._unspaced = 0

    def add(self, text: str) -> None:
        """Counts a normalised text."""
        words = text.count(" ") + 1
        if has_unspaced(text):
            words, self._unspaced = len(scripts.words(text)), self._unspaced + 1
        self._numbers[min(words, LONGEST_COUNTED)] += 1
        self._words += words
        self._texts += 1
        self._longest = max(self._longest, words)

    def summary(self) -> dict[str, float]:
        """Words of a text: mean, median, 95th percentile (at most 4096) and maximum; how many texts have unspaced ones."""
        return {
            "mean": round(self._words / max(self._texts, 1), 1),
            "median": self._quantile(0.5),
            "p95": self._quantile(0.95),
            "max": self._longest,
            **({"unspaced": self._unspaced} if self._unspaced else {}),
        }

    def _quantile(self, share: float) -> int:
        seen = 0
        for words, number in enumerate(self._numbers):
            seen += number
            if seen >= share * self._texts:
                return words
        return LONGEST_COUNTED


class Preparation:
    """One preparation; its methods are called in the order in which they stand here."""

    def __init__(
        self, settings: CorpusSettings, source: Source, draft: Path, row_index: RowIndex, tolerate_empty: bool = False
    ) -> None:
        self.settings, self.source, self.draft, self.row_index = settings, source, draft, row_index
        bad_lines = draft / collection.BAD_LINES_FILE
        self.bad = BadLines(settings.max_bad_lines, bad_lines, tolerate_empty=tolerate_empty)
        self.articles = Articles(draft, row_index, self.bad)
        self.counts = dict.fromkeys(
            (
                "passages",
                "queries",
                "judgments",
                "passages_read",
                "queries_read",
                "judgments_read",
                "duplicates_merged",
                "passages_left_out",
                "queries_unjudged",
                "queries_dropped",
                "judgments_dropped",
                "judgments_merged",
                "train_queries_in_evaluation",
                "bad_lines",
            ),
            0,
        )
        self.splits: dict[str, dict[str, int]] = {}
        self.own_passages: dict[str, bool | int] = {}
        self.passage_words, self.query_words = Lengths(), Lengths()

    def read(self) -> None:
        """Reads every row; the corpus is written as it comes."""
        rows: Iterator[Row | ArticleRow] = self.source.rows(self.bad)
        with (
            (self.draft / collection.CORPUS_FILE).open("w", encoding="utf-8") as corpus,
            Progress("read the source", unit="rows") as progress,
        ):
            for number, row in enumerate(rows, start=1):
                if isinstance(row, PassageRow):
                    if self._takes_passage(row):
                        self._keep(Passage(row.id, row.title, row.text), corpus)
                elif isinstance(row, QueryRow):
                    self._take_query(row)
                elif isinstance(row, ArticleRow):
                    self.articles.add(row)
                elif isinstance(row, TeacherRow):
                    self.row_index.add_teacher(row)
                else:
                    self._take_judgment(row)
                if number % UNITS_BETWEEN_REPORTS == 0:
                    progress.update(UNITS_BETWEEN_REPORTS)

    def _keep(self, passage: Passage, corpus: TextIO) -> None:
        corpus.write(collection.passage_line(passage))
        self.passage_words.add(f"{passage.title} {passage.text}".strip())
        self.counts["passages"] += 1

    def _takes_passage(self, row: PassageRow) -> bool:
        outcome = self.row_index.add_passage(row, merge=self.settings.deduplicate)
        if outcome == "repeated" and row.may_repeat:
            return False
        self.counts["passages_read"] += 1
        if outcome == "new":
            return True
        if outcome == "copy":
            self.counts["duplicates_merged"] += 1
        else:
            self._reject_duplicate(row, outcome)
        return False

    def _take_query(self, row: QueryRow) -> None:
        outcome = self.row_index.add_query(row)
        if outcome == "repeated" and row.may_repeat:
            return
        self.counts["queries_read"] += 1
        if outcome != "new":
            self._reject_duplicate(row, outcome)

    def _reject_duplicate(self, row: PassageRow | QueryRow, outcome: str) -> None:
        what = "passage" if isinstance(row, PassageRow) else "query"
        other = "" if outcome == "repeated" else " with another text"
        error = row.place.error(
            f"the {what} id {row.id!r} was there before{other}",
            field="id",
            hint="give every passage and every query an id of its own",
        )
        self.bad.set_aside(error, row._asdict())

    def _take_judgment(self, row: JudgmentRow) -> None:
        self.row_index.add_judgment(row)
        self.counts["judgments_read"] += 1

    def check(self) -> None:
        """Checks judgments, queries and passages against each other.

        Raises:
            InputError: There are no passages or no judgments, a judgment names what is unknown or contradicts another,
                or a training query has no positive.
        """
        self._check_there_is_something()
        self.row_index.index_judgments()
        self.row_index.note_set_aside(self.bad.ids)
        for kind in ("query", "passage"):
            for finding in self.row_index.judgments_of_unknown(kind):
                self._reject_unknown(kind, finding)
            self.counts["judgments_dropped"] += self.row_index.drop_judgments_of_unknown(kind)
        for finding in self.row_index.contradictions():
            problem = f"query {finding.query_id!r} and passage {finding.passage_id!r} were judged before, otherwise"
            self._reject(finding, problem, "score", "keep one of the lines")
        for finding in list(self.row_index.training_queries_without_positives()):
            self._drop_query(finding)
        if not self.row_index.splits():
            raise InputError("no judgment is left", file=self.source.shown, hint="correct the bad lines")

    def _check_there_is_something(self) -> None:
        if not self.counts["passages_read"]:
            raise InputError("no passages in it", file=self.source.shown, hint="give it at least one passage")
        if not self.counts["judgments_read"]:
            hint = "add qrels: training and evaluation need to know which passages answer which query"
            raise InputError("no judgments in it", file=self.source.shown, hint=hint)

    def _reject_unknown(self, kind: str, finding: Finding) -> None:
        name = finding.query_id if kind == "query" else finding.passage_id
        if not finding.is_consequence:
            field = "query-id" if kind == "query" else "corpus-id"
            self._reject(finding, f"names the unknown {kind} {name!r}", field, f"add the {kind} or remove the line")

    def _drop_query(self, finding: Finding) -> None:
        if not finding.is_consequence:
            problem = f"the training query {finding.query_id!r} has no positive passage"
            self._reject(finding, problem, "query-id", "give it a passage of grade 1 or more, or remove it")
        self.row_index.drop_training_query(finding.query_id)
        self.counts["queries_dropped"] += 1

    def _reject(self, finding: Finding, problem: str, field: str, hint: str) -> None:
        place = finding.place
        error = place.error(problem, field=field, hint=hint)
        self.bad.set_aside(error, {"query": finding.query_id, "passage": finding.passage_id})

    def split(self) -> None:
        """Holds out split dev where the source has nothing but train, or where it is asked for and there is none like it."""
        splits, wanted = self.row_index.splits(), self.settings.heldout_queries
        if is_unset(wanted):
            wanted = HELDOUT_QUERIES if splits == [TRAINING_SPLIT] else 0
        if wanted and TRAINING_SPLIT in splits and not set(splits) & set(FOR_CHOICES):
            self.row_index.hold_out(wanted, self.settings.sample_seed)

    def write(self) -> None:
        """Writes all but the manifest, and thins the corpus out where a subset is wanted."""
        self._write_queries()
        (self.draft / collection.QRELS_DIRECTORY).mkdir()
        for split in self.row_index.splits():
            self._write_qrels(split)
        self._settle_own_passages()
        thinned = 0 < self.settings.max_passages < self.counts["passages"]
        if thinned:
            self._thin_corpus()
        is_left = self.row_index.is_chosen if thinned else lambda _: True
        if articles := self.articles.write(is_left):
            self.counts["articles"] = articles
        self._write_table(collection.MERGED_FILE, (row for row in self.row_index.merged() if is_left(row[1])))
        self._write_table(collection.TEACHER_FILE, (row for row in self.row_index.teacher_scores() if is_left(row[1])))

    def _write_table(self, name: str, rows: Iterable[tuple[Any, ...]]) -> None:
        """Writes tab-separated columns, and no file where there are no rows."""
        path = self.draft / name
        with path.open("w", encoding="utf-8") as file:
            file.writelines("\t".join(map(str, row)) + "\n" for row in rows)
        if not path.stat().st_size:
            path.unlink()

    def _settle_own_passages(self) -> None:
        """Decides whether rankings leave out the passage of a query's own id: where most such passages are the query."""
        setting, number = self.settings.own_passages, self.row_index.queries_with_own_passage()
        sample = self.row_index.some_queries_with_own_passage(OWN_PASSAGES_COMPARED)
        same = same_texts(self.draft / collection.CORPUS_FILE, sample)
        removed = setting == "remove" or (setting == "auto" and bool(same) and 2 * same >= len(sample))
        self.own_passages = {"removed": removed, "queries": number, "compared": len(sample), "same_text": same}

    def _write_queries(self) -> None:
        with (self.draft / collection.QUERIES_FILE).open("w", encoding="utf-8") as file:
            for query_id, text in self.row_index.judged_queries():
                file.write(json.dumps({"_id": query_id, "text": text}, ensure_ascii=False) + "\n")
                self.query_words.add(text)
                self.counts["queries"] += 1

    def _write_qrels(self, split: str) -> None:
        judgments = 0
        with (self.draft / collection.QRELS_DIRECTORY / f"{split}.tsv").open("w", encoding="utf-8") as file:
            file.write(collection.QRELS_HEADER)
            for row in self.row_index.final_judgments(split):
                file.write("\t".join(map(str, row)) + "\n")
                judgments += 1
        self.splits[split] = {"queries": self.row_index.number_of_queries(split), "judgments": judgments}
        if without := self.row_index.queries_without_relevant(split):
            self.splits[split]["without_relevant"] = without

    def _thin_corpus(self) -> None:
        """Makes the corpus a subset: the judged passages, and others up to the number wanted."""
        self.row_index.choose_passages(self.settings.max_passages, self.settings.sample_seed)
        corpus = self.draft / collection.CORPUS_FILE
        whole = corpus.with_suffix(".whole")
        corpus.rename(whole)
        read, self.counts["passages"], self.passage_words = self.counts["passages"], 0, Lengths()
        with whole.open("rb") as lines, corpus.open("w", encoding="utf-8") as kept:
            for line in lines:
                row = json.loads(line)
                if self.row_index.is_chosen(row["_id"]):
                    self._keep(Passage(row["_id"], row["title"], row["text"]), kept)
        whole.unlink()
        self.counts["passages_left_out"] = read - self.counts["passages"]

    def _left_out(self) -> dict[str, Any]:
        """Counts what was in the source and is not known to its layout: files, and fields by their records."""
        files_ = unread(self.source.directory, self.bad.read) if self.source.directory else []
        if files_:
            print(f"not read, because the layout has no such files: {', '.join(files_)}", file=sys.stderr, flush=True)
        left_out = {"files": files_, "fields": dict(sorted(self.bad.dropped.items()))}
        return {collection.LEFT_OUT: left_out} if any(left_out.values()) else {}

    def manifest(self) -> dict[str, Any]:
        """Builds the content of `collection.json`."""
        names = [collection.CORPUS_FILE, collection.QUERIES_FILE]
        names += [f"{collection.QRELS_DIRECTORY}/{split}.tsv" for split in self.splits]
        optional = (collection.ARTICLES_FILE, collection.MERGED_FILE, collection.TEACHER_FILE)
        names += [name for name in optional if (self.draft / name).is_file()]
        judgments = sum(split["judgments"] for split in self.splits.values())
        dropped = self.counts["judgments_dropped"]
        self.counts |= {
            "judgments": judgments,
            "judgments_merged": self.counts["judgments_read"] - dropped - judgments,
            "queries_unjudged": self.counts["queries_read"] - self.counts["queries"],
            "train_queries_in_evaluation": self.row_index.training_queries_seen_in_evaluation(),
            "bad_lines": self.bad.count,
            **({"passages_empty": self.bad.empty} if self.bad.empty else {}),
        }
        return {
            "format": collection.FORMAT,
            "counts": self.counts,
            "splits": self.splits,
            collection.OWN_PASSAGES: self.own_passages,
            "words": {"passage": self.passage_words.summary(), "query": self.query_words.summary()},
            "source": self.source.description,
            **self._left_out(),
            "fingerprint": collection.fingerprint_of(self.draft, names),
            "licence": self.source.licence,
            "files": {name: (self.draft / name).stat().st_size for name in names},
            "versions": {"llm-retriever": llm_retriever.__version__, "python": platform.python_version()},
        }
