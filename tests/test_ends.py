"""How programs end: a reader that goes away, names with marks of Markdown, numbers that are none, damaged cards and models."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_retriever import files
from llm_retriever.adaptation.lengths import check_lengths
from llm_retriever.contrastive.tuning import check_tokenizer
from llm_retriever.data.collection_report import statistics_markdown
from llm_retriever.errors import InputError
from llm_retriever.files.markdown import code, escaped
from llm_retriever.indexing.search import _lines, _read
from llm_retriever.methods import QUERY_LIKELIHOOD, method
from llm_retriever.models.card import CARD_FILE, RetrieverCard
from llm_retriever.models.loading import load_model
from llm_retriever.reranking.likelihood import load_language_model
from llm_retriever.settings import EvaluationSettings, MiningSettings, TuningSettings
from llm_retriever.settings.options import checked_options
from llm_retriever.settings.parameters import build
from llm_retriever.training.train import TrainingRun
from llm_retriever.training.vocabulary import extended
from llm_retriever.training.weights import load_backbone
from tests.conftest import write_backbone
from tests.data.sources.test_layouts import prepared
from tests.encoders.test_retriever import write_retriever

ROOT = Path(__file__).parent.parent
MANY = """
import sys
from llm_retriever.processes import pipes
def main():
    for number in range(200_000):
        print("a line", number)
    {}
    return 7
sys.exit(pipes.run(main))
"""


def piped(program: list[str], reader: str, errors: Path) -> tuple[int, str]:
    """The exit code of a program whose output `reader` reads, and its messages."""
    shell = ["bash", "-c", f'"$@" 2>{errors} | {reader} >{errors}.out; echo "${{PIPESTATUS[0]}}"', "bash"]
    ended = subprocess.run([*shell, sys.executable, *program], cwd=ROOT, capture_output=True, text=True, check=True)
    return int(ended.stdout), errors.read_text()


@pytest.mark.parametrize(
    ("program", "reader", "code_"),
    [
        (["-c", MANY.format("pass")], "head -1", 0),
        (["-c", MANY.format("pass")], "cat", 7),
        (["-c", MANY.format("pass")], "true", 0),
        (["-m", "llm_retriever.encoders", "list"], "true", 0),
        (["-m", "llm_retriever.encoders", "--help"], "true", 0),
        (["-m", "llm_retriever.promotion.versions", "list", "nowhere-at-all"], "true", 0),
    ],
)
def test_a_reader_that_has_read_enough_is_no_error(program: list[str], reader: str, code_: int, tmp_path: Path) -> None:
    assert piped(program, reader, tmp_path / "errors") == (code_, "")


def test_a_connection_that_breaks_is_an_error_all_the_same(tmp_path: Path) -> None:
    ended, told = piped(["-c", MANY.format("raise BrokenPipeError('the store')")], "cat", tmp_path / "errors")
    assert ended == 1
    assert "BrokenPipeError: the store" in told


def test_a_mark_of_byte_order_is_no_part_of_a_question(tmp_path: Path) -> None:
    (tmp_path / "questions.txt").write_bytes("\ufeffwhich river\n\n  who\u00e9 \n".encode())
    assert list(_lines(_read(tmp_path / "questions.txt"))) == ["which river", "who\u00e9"]
    assert list(_lines(["\ufeffwhich river\n"])) == ["which river"]


NAMES = [
    "a|b",
    "*bold*",
    "_it_",
    "[x](http://y)",
    "<b>x</b>",
    "# head",
    "a`b",
    "1. one",
    "- item",
    "&lt;",
    "back\\slash",
    "~~x~~",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_shown_as_it_is(name: str) -> None:
    markdown = pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable(["table", "strikethrough"])
    page = markdown.render(f"| {escaped(name)} |\n|---|\n| {code(name).replace('|', '')} |\n\n{escaped(name)}")
    shown = name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert page.count(f"<th>{shown}</th>") == 1
    assert page.endswith(f"<p>{shown}</p>\n")


def test_statistics_escape_what_a_source_is_called(tmp_path: Path, beir_source: Path) -> None:
    odd = beir_source.rename(beir_source.with_name("a`b *c*"))
    (odd / "x|<b>.csv").write_text("x")
    text = statistics_markdown(prepared(odd, tmp_path / "collection").manifest)
    assert f"- uri: ``{odd}``" in text
    assert "`x|<b>.csv`" in text


@pytest.mark.parametrize("value", ["inf", "nan", float("-inf"), "1e999"])
@pytest.mark.parametrize(
    ("settings", "field"),
    [
        (TuningSettings, "learning_rate"),
        (TuningSettings, "epochs"),
        (MiningSettings, "bm25_k1"),
        (MiningSettings, "score_ceiling"),
    ],
)
def test_a_setting_is_a_finite_number(settings: type, field: str, value: Any) -> None:
    with pytest.raises(InputError, match=f'field "{field}"'):
        build(settings, {field: value})


def test_an_option_is_a_finite_number() -> None:
    with pytest.raises(InputError, match=r'field "mine_options.bm25_k1": inf is not of type float'):
        checked_options(MiningSettings, {"bm25_k1": float("inf")}, "mine_options")
    assert build(EvaluationSettings, {"depth": 5.0}).depth == 5


@pytest.mark.parametrize("text", ["[NaN]", "[-Infinity]", "[1e999]", "[" * 100_000, f"[{'9' * 5000}]", "\0"])
def test_what_is_no_json_is_bad_input(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match=r"x\.json.*not valid JSON"):
        files.read_json(tmp_path / "x.json")
    with pytest.raises(InputError, match="cannot be read"):
        files.read_json(tmp_path)


def test_json_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("\ufeff[1]")
    assert files.read_json(tmp_path / "x.json") == [1]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("pooling", None),
        ("attention", "left"),
        ("padding_side", "both"),
        ("query_length", "x"),
        ("query", {}),
    ],
)
def test_a_card_that_says_what_nobody_knows_is_refused(field: str, value: Any, tmp_path: Path) -> None:
    directory = write_retriever(tmp_path / "retriever")
    content = json.loads((directory / CARD_FILE).read_text())
    (directory / CARD_FILE).write_text(json.dumps(content | {field: value}))
    with pytest.raises(InputError, match=f'{CARD_FILE}: field "{field}'):
        RetrieverCard.load(directory)


@pytest.mark.parametrize(
    "change", [{"hidden_size": 128}, {"vocab_size": 11}, {"intermediate_size": 3}, {"model_type": "none"}]
)
def test_a_configuration_that_is_not_the_weights_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    model = write_retriever(tmp_path / "retriever") / "model"
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(InputError, match="the model cannot be loaded"):
        load_model(model, "fp32")


def lack_a_token(directory: Path) -> None:
    file = directory / "tokenizer.json"
    file.write_text(file.read_text().replace('"e":', '"zz":', 1))


SPOILT: dict[str, Callable[[Path], Any]] = {
    "no tokenizer": lambda directory: (directory / "tokenizer.json").unlink(),
    "a tokenizer without a token that it merges": lack_a_token,
    "half a tokenizer": lambda directory: (directory / "tokenizer.json").write_text("{}"),
    "no configuration": lambda directory: (directory / "config.json").unlink(),
    "an empty configuration": lambda directory: (directory / "config.json").write_text("{}"),
    "a configuration of other types": lambda directory: (directory / "config.json").write_text(
        (directory / "config.json").read_text().replace('"num_attention_heads": 4', '"num_attention_heads": "x"')
    ),
    "a list as configuration": lambda directory: (directory / "config.json").write_text("[]"),
}
DOORS: dict[str, Callable[[Path], Any]] = {
    "adapt": lambda backbone: check_lengths(next(iter(QUERY_LIKELIHOOD.values())), method("llm-ql"), backbone),
    "tune": lambda backbone: check_tokenizer(method("llm-ql"), backbone),
    "re-rank": lambda backbone: load_language_model(backbone, precision="fp32"),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("spoil", SPOILT)
def test_a_backbone_that_lacks_something_is_refused_at_every_door(spoil: str, door: str, tmp_path: Path) -> None:
    backbone = write_backbone(tmp_path / "backbone")
    SPOILT[spoil](backbone)
    with pytest.raises(InputError, match=r"backbone: the \w+ cannot be loaded .*; copy the whole directory again"):
        DOORS[door](backbone)


@pytest.mark.parametrize("spoil", ["no tokenizer", "a tokenizer without a token that it merges"])
def test_new_tokens_for_a_backbone_with_a_spoilt_tokenizer_are_refused(spoil: str, tmp_path: Path) -> None:
    backbone = write_backbone(tmp_path / "backbone")
    SPOILT[spoil](backbone)
    with pytest.raises(InputError, match="the tokenizer cannot be loaded"), extended(backbone, ["<s1>"]):
        pass


def test_a_backbone_with_another_configuration_is_refused_before_it_is_trained(tmp_path: Path) -> None:
    model = write_retriever(tmp_path / "retriever") / "model"
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"hidden_size": 128}))
    with pytest.raises(InputError, match="the model cannot be loaded"):
        load_backbone(model, TrainingRun("t"), tune="lora", head=True)
