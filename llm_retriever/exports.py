"""The old name of `llm_retriever.exporting.export`: says the new one."""

import sys

if __name__ == "__main__":
    print("this command is now: llm-retriever export, or python -m llm_retriever.exporting", file=sys.stderr)
    raise SystemExit(2)
raise ImportError("llm_retriever.exports is now llm_retriever.exporting.export")
