"""What is taken from a file's documentation strings."""

from __future__ import annotations

import pytest

from llm_retriever.data.sources.docstrings import Documented, documented

SOURCE = '''"""Reads and writes shelves.

A shelf is a dictionary that outlives the program."""

class Shelf(Base, metaclass=Meta):
    """Keep *objects* under :class:`~shelf.keys.Key` keys, e.g. on a disk. More about ``Shelf``.

    .. versionadded:: 3.1
       With an explanation.

    Parameters
    ----------
    path : str
        Where `it <https://example.org>`__ lies, as in /usr/local/lib/python.

    >>> Shelf("a")
    Shelf

    Examples
    --------
    Never read.
    """

    def open(self, mode="r", *, lock: bool = True) -> int:
        """open(mode) -> int

        Opens it."""

    @property
    def size(self):
        """The number of objects."""

    @size.setter
    def size(self, value):
        """Refuses."""

    @typing.overload
    def get(self, key: int):
        """Never read."""

    def _hidden(self):
        """Never read."""

    def bare(self):
        pass

if True:
    async def fetch(url): "Fetches a shelf."
'''


@pytest.fixture
def things() -> dict[str, Documented]:
    return {thing.name: thing for thing in documented(SOURCE, "shelf")}


def test_public_documented_things_are_found_and_no_others(things: dict[str, Documented]) -> None:
    assert list(things) == ["shelf", "shelf.Shelf", "shelf.Shelf.open", "shelf.Shelf.size", "shelf.fetch"]
    assert things["shelf.Shelf.size"].summary == "The number of objects."


def test_the_summary_is_the_first_sentence_without_marks(things: dict[str, Documented]) -> None:
    assert things["shelf"].summary == "Reads and writes shelves."
    assert things["shelf.Shelf"].summary == "Keep objects under Key keys, e.g. on a disk."


def test_the_body_has_no_directives_no_doctests_no_paths_and_ends_before_the_examples(
    things: dict[str, Documented],
) -> None:
    assert things["shelf.Shelf"].body == "More about Shelf. Parameters path : str Where it lies, as in"


def test_signatures_are_as_in_the_source(things: dict[str, Documented]) -> None:
    assert things["shelf.Shelf"].signature == "class Shelf(Base)"
    assert things["shelf.Shelf.open"].signature == "def open(mode='r', *, lock: bool=True)"
    assert things["shelf"].signature == "module shelf"


def test_a_first_line_that_repeats_the_signature_is_no_summary(things: dict[str, Documented]) -> None:
    assert things["shelf.Shelf.open"].summary == "Opens it."


LONG = "The file is opened in binary mode unless the mode says otherwise, and closed behind the last reader."


@pytest.mark.parametrize(
    ("summary", "body", "expected"),
    [
        ("Open a file and return a stream.", LONG, True),
        ("Open a file.", LONG, False),
        ("Open a file and return a stream.", "Too short.", False),
        ("Deprecated since version 3.2, use open instead.", LONG, False),
        ("Initialize self with the file and the mode.", LONG, False),
        ("See the base class for what this does.", LONG, False),
        ("x = f(a) -> b | c :: 12 34", LONG, False),
        ("The file is opened in binary mode", LONG, False),
        (" ".join(["word"] * 31), LONG, False),
    ],
)
def test_only_sentences_that_people_would_ask_make_queries(summary: str, body: str, expected: bool) -> None:
    assert Documented("a.b", "def b()", summary, body).makes_a_query is expected
