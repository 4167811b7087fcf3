"""Which queries a retriever was trained on: told by digests, without their texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llm_retriever.data.training_queries import (
    TRAINING_QUERIES_FILE,
    digests,
    favour,
    read_training_queries,
    were_trained_on,
    write_training_queries,
)
from llm_retriever.errors import InputError


def test_a_query_is_known_again_whatever_its_letter_case_and_white_space(tmp_path: Path) -> None:
    write_training_queries(tmp_path, (text for text in ["how old is  the bridge", "Straße", "how old is the bridge"]))
    listed = read_training_queries(tmp_path)
    assert listed is not None
    assert len(listed) == 2
    asked = [" How OLD is the\tbridge\n", "STRASSE", "how old is the bridge?", "howoldisthebridge", ""]
    assert were_trained_on(listed, asked).tolist() == [True, True, False, False, False]


def test_the_file_holds_sixteen_bytes_a_query_and_no_text(tmp_path: Path) -> None:
    texts = [f"query {i}" for i in range(1000)]
    write_training_queries(tmp_path, texts)
    content = (tmp_path / TRAINING_QUERIES_FILE).read_bytes()
    assert b"query" not in content
    assert len(content) == 128 + 16 * 1000
    write_training_queries(tmp_path, reversed(texts))
    assert (tmp_path / TRAINING_QUERIES_FILE).read_bytes() == content


def test_half_a_digest_in_common_is_not_enough() -> None:
    listed = digests(["one", "two"])
    mixed = np.stack([listed[:, 0], listed[::-1, 1]], axis=1)
    assert were_trained_on(mixed, ["one", "two"]).tolist() == [False, False]
    assert were_trained_on(listed, ["two", "one"]).tolist() == [True, True]
    assert were_trained_on(digests([]), ["one"]).tolist() == [False]


def test_a_retriever_of_an_earlier_version_does_not_say(tmp_path: Path) -> None:
    assert read_training_queries(tmp_path) is None


@pytest.mark.parametrize("content", [b"", b"no array", None])
def test_another_file_of_that_name_is_bad_input(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / TRAINING_QUERIES_FILE
    if content is None:
        np.save(path, np.zeros((3, 2)))
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"training_queries.npy: holds no digests of queries; restore that retriever"):
        read_training_queries(tmp_path)


def test_one_query_and_many_are_told_in_a_sentence() -> None:
    assert favour("dev", 1, 10).startswith("1 of 10 queries of dev was in the training")
    assert favour("dev", 1200, 6980).startswith("1,200 of 6,980 queries of dev were in the training")
