"""Dense encoders: published ones, and the interface that they share with the retrievers that are made here."""

from __future__ import annotations

from llm_retriever.encoders.interface import Encoder

__all__ = ["Encoder", "check", "load"]


def check(name: str) -> None:
    """Raises InputError for what `load` cannot load, as far as that shows without the network.

    Args:
        name: As for `load`.

    Raises:
        InputError: There is no such row or directory, or its commits or places do not fit it.
    """
    from llm_retriever.encoders import opening

    opening.check(name)


def load(name: str, *, device: str | None = None, precision: str = "auto") -> Encoder:
    """Loads an encoder of queries and passages.

    Args:
        name: One of
            - a row of the table (`llm-retriever encoders list`), downloaded from the Hugging Face hub at the commit
              that the table pins, or at `ROW@COMMIT` (`ROW@COMMIT,COMMIT` where it has several models);
            - `ROW=PLACE`: wired like the row, with weights from a directory or s3:// prefix; where the row has several
              models, `ROW=PLACE,PLACE` or one place with a folder for each (`query/` and `passage/`, `base/` and `adapter/`);
            - a directory or s3:// prefix of a retriever made here, of its merged export, or of sentence-transformers.
        device: As torch names it; None = the first GPU, or the processor.
        precision: `bf16`, `fp16`, `fp32`, or `auto` = bf16 where it is computed natively.

    Raises:
        InputError: There is no such encoder, its commit is not known, the hub cannot be reached, or files are not complete.

    Example:
        >>> encoder = load("minilm")  # doctest: +SKIP
        >>> (encoder.encode_queries(["who built the bridge"]) @ encoder.encode_passages(["It was built by hand."]).T).shape
        (1, 1)
    """
    from llm_retriever.encoders import opening

    return opening.load(name, device=device, precision=precision)
