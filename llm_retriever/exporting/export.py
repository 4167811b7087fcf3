"""Exports a retriever for programs that know transformers, or sentence-transformers, but not this library.

An export is compared with the retriever on probe texts before it is written; one that gives other vectors is refused.

    llm-retriever export --retriever DIR --format sentence-transformers --output DIR
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llm_retriever.errors import InputError
from llm_retriever.files import layouts

if TYPE_CHECKING:
    from llm_retriever.encoders.retriever import Retriever, Side, Vectors
    from llm_retriever.exporting.probes import Source

Format = Literal["merged", "sentence-transformers"]


def export(retriever: Retriever | str | Path, directory: str | Path, format: Format = "merged") -> None:
    """Exports a retriever for programs without this library; the weights keep their precision.

    Args:
        retriever: A loaded one, or its directory or s3:// prefix.
        directory: Becomes the export; an earlier one is replaced, anything else is refused.
        format: `merged` = a plain Hugging Face directory with card and README.md; `sentence-transformers` = what that
            library loads, where it can express the method.

    Raises:
        InputError: The export would not give the same vectors; nothing is written then.
    """
    write = export_merged if format == "merged" else export_sentence_transformers
    write(retriever, directory)


def export_merged(retriever: Retriever | str | Path, directory: str | Path) -> None:
    """Exports a plain Hugging Face directory: the merged encoder without head, and its tokenizer.

    Beside them are `retriever_card.json` and a README.md with the few lines of code that word, pool and normalise. Every
    method can be exported in this way.

    Args:
        retriever: A loaded one, or its directory or s3:// prefix. The weights keep the precision that it was loaded in,
            or saved in.
        directory: Becomes the export; an earlier one is replaced, anything else is refused.

    Raises:
        InputError: There is no such retriever, or the files would not give its vectors (cosine below 0.9999 in fp32).
    """
    from llm_retriever.exporting import merged, readme
    from llm_retriever.exporting.probes import check_same_vectors, opened

    _check_output(retriever, directory)
    with opened(retriever) as source, layouts.EXPORT.output(directory) as draft:
        merged.write(source, draft)
        readme.write_merged(source.retriever.card, draft)
        check_same_vectors(source, merged.vectors(source.retriever, draft, source.texts), "a plain model")


def export_sentence_transformers(retriever: Retriever | str | Path, directory: str | Path) -> None:
    """Exports for sentence-transformers: `encode_query` and `encode_document` give the retriever's vectors.

    Prompts are the card's prefixes (`query`, `document` and, the same, `passage`); beginning-of-sequence token, suffix and
    embedding token are built into the tokenizer; queries and passages keep their own lengths. Needs sentence-transformers.

    Args:
        retriever: As for `export_merged`.
        directory: Becomes the export; an earlier one is replaced, anything else is refused.

    Raises:
        InputError: As `export_merged`; or sentence-transformers cannot express the method: two copies of a text, different
            suffixes for queries and passages, the mean over embedding tokens, or a tokenizer that does not tokenise the
            suffix alike after every text.
    """
    from llm_retriever.exporting import readme, sentences
    from llm_retriever.exporting.probes import check_same_vectors, opened

    _check_output(retriever, directory)
    with opened(retriever) as source:
        sentences.check_expressible(source.retriever.card)
        tokenizer, prompts = sentences.worded(source)
        with layouts.EXPORT.output(directory) as draft:
            sentences.write(source, tokenizer, prompts, draft)
            readme.write_sentences(source.retriever.card, draft)
            check_same_vectors(source, _encoded(source, draft), "a sentence-transformers model")


def _check_output(retriever: Retriever | str | Path, directory: str | Path) -> None:
    if not isinstance(retriever, (str, Path)):
        return
    for absolute in (os.path.abspath, os.path.realpath):
        place, original = Path(absolute(directory)), Path(absolute(retriever))
        if place == original or place in original.parents or original in place.parents:
            raise InputError(
                "the export would replace the retriever or lie within it", file=directory, hint="give another directory"
            )


def _encoded(source: Source, directory: Path) -> dict[Side, Vectors]:
    """Encodes the probes by sentence-transformers itself, in fp32 and in one padded batch a side."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise InputError(
            "sentence-transformers is not installed, and the export could not be checked",
            field="format",
            hint="pip install sentence-transformers",
        ) from None
    model = SentenceTransformer(
        str(directory),
        device=str(source.retriever.model.device),
        local_files_only=True,
        model_kwargs={"dtype": "float32"},
    )
    # One at a time: some architectures forget that they are bidirectional where a batch has no pads.
    alone: dict[str, Any] = {"batch_size": 1, "show_progress_bar": False}
    return {
        "query": model.encode_query(source.texts["query"], **alone),
        "passage": model.encode_document(source.texts["passage"], **alone),
    }
