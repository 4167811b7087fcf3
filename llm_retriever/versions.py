"""The old name of `llm_retriever.promotion.versions`: says the new one."""

import sys

if __name__ == "__main__":
    print("this command is now: llm-retriever versions, or python -m llm_retriever.promotion.versions", file=sys.stderr)
    raise SystemExit(2)
raise ImportError("llm_retriever.versions is now llm_retriever.promotion.versions")
