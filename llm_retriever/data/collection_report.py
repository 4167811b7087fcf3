"""Reports what a collection holds and what was changed on the way to it, as Markdown."""

from __future__ import annotations

from typing import Any

from llm_retriever.files.markdown import code, escaped, table

CHANGES = {
    "duplicates_merged": "passages merged into one of the same title and text",
    "passages_left_out": "passages left out by `max_passages`",
    "queries_unjudged": "queries left out because no split judges them",
    "queries_dropped": "training queries dropped because they lost their positives or had none",
    "judgments_dropped": "judgments dropped because their query or passage was set aside",
    "passages_empty": "passages with neither title nor text left out",
    "judgments_merged": "judgments merged because they say the same, or their passages were merged",
    "bad_lines": "bad lines set aside in `bad_lines.jsonl`",
}


SHOWN = 20
SPLIT_COLUMNS = ("split", "queries", "judgments", "judgments per query", "queries without a relevant passage")


def statistics_markdown(manifest: dict[str, Any]) -> str:
    """Renders the content of `collection.json` for people."""
    counts = manifest["counts"]
    parts = [
        "# Collection",
        "",
        f"{counts['passages']:,} passages, {counts['queries']:,} queries, {counts['judgments']:,} judgments.",
        "",
        *_table(SPLIT_COLUMNS, _split_rows(manifest["splits"])),
        *_table(("words in a", "mean", "median", "95th percentile", "longest"), _word_rows(manifest["words"])),
        *_unspaced(manifest["words"]),
        "## What was changed",
        "",
        *(f"- {change}" for change in what_was_changed(manifest)),
        *_own_passages(manifest),
        "",
        "## Where it comes from",
        "",
        *_origin(manifest),
    ]
    if counts["train_queries_in_evaluation"]:
        number = counts["train_queries_in_evaluation"]
        parts += [f"**Attention**: {number:,} training queries have the text of an evaluation query.", ""]
    return "\n".join(parts)


def _split_rows(splits: dict[str, dict[str, int]]) -> list[tuple[str, ...]]:
    return [
        (
            name,
            f"{n['queries']:,}",
            f"{n['judgments']:,}",
            f"{n['judgments'] / n['queries']:.2f}",
            f"{n.get('without_relevant', 0):,}",
        )
        for name, n in splits.items()
    ]


def _word_rows(words: dict[str, dict[str, float]]) -> list[tuple[str, ...]]:
    return [(kind, *(f"{n[key]:,}" for key in ("mean", "median", "p95", "max"))) for kind, n in words.items()]


def _unspaced(words: dict[str, dict[str, float]]) -> list[str]:
    if not any("unspaced" in n for n in words.values()):
        return []
    return ["Each character of a script that writes no spaces counts as a word.", ""]


def what_was_changed(manifest: dict[str, Any]) -> list[str]:
    """Lists what was merged, dropped and left out, a phrase each; at least one."""
    counts = manifest["counts"]
    phrases = [f"{counts[name]:,} {meaning}" for name, meaning in CHANGES.items() if counts.get(name)]
    return [*phrases, *_left_out(manifest)] or ["nothing but white space and Unicode form"]


def _left_out(manifest: dict[str, Any]) -> list[str]:
    """Lists what is in the source and was not read; a split may be among it."""
    left_out = manifest.get("left_out", {})
    lines = []
    if names := left_out.get("files"):
        shown = ", ".join(map(code, names[:SHOWN])) + (
            f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
        )
        lines.append(f"files not read, because the layout has no such files: {shown}")
    if fields := left_out.get("fields"):
        fields_text = ", ".join(f"{code(name)} ({number:,} records)" for name, number in fields.items())
        lines.append(f"fields dropped, because the layout has no such fields: {fields_text}")
    return lines


def _own_passages(manifest: dict[str, Any]) -> list[str]:
    own = manifest.get("own_passages", {})
    if not own.get("queries") or not own["removed"]:
        return []
    sentence = (
        f"{own['queries']:,} queries have the id of a passage, and {own['same_text']:,} of {own['compared']:,} its text"
    )
    return ["", f"{sentence}: rankings leave these passages out, but for those judged relevant (`own_passages`)."]


def _origin(manifest: dict[str, Any]) -> list[str]:
    source = {name: value for name, value in manifest["source"].items() if not isinstance(value, dict)}
    versions = manifest["source"].get("versions", {})
    lines = [f"- {escaped(name)}: {code(str(value))}" for name, value in source.items()]
    if versions:
        lines.append("- made from: " + ", ".join(f"{name} {version}" for name, version in versions.items()))
    return [*lines, f"- licence: {escaped(manifest['licence'])}", f"- fingerprint: `{manifest['fingerprint']}`", ""]


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    return [*table(head, [[escaped(cell) for cell in row] for row in rows]), ""]
