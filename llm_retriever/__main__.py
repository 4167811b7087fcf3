"""`python -m llm_retriever` is `llm-retriever`."""

import sys

from llm_retriever.console import program

if __name__ == "__main__":
    sys.exit(program())
