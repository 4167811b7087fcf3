"""Adapting a backbone on a real, small training set: what comes out, and where it says it comes from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, MistralConfig, OPTConfig, OPTForCausalLM

from llm_retriever.adaptation import query_likelihood
from llm_retriever.adaptation.adapt import adapt, resolved_method, resolved_recipe
from llm_retriever.adaptation.consecutive import TextPair
from llm_retriever.adaptation.ebae_ebar import JointCollator
from llm_retriever.adaptation.lengths import check_lengths, parts
from llm_retriever.adaptation.query_likelihood import PairCollator, PairDataset, QueryLikelihoodLoss
from llm_retriever.data.collection import Collection
from llm_retriever.data.training_set import TrainingSet
from llm_retriever.errors import InputError
from llm_retriever.files.seal import SEAL
from llm_retriever.methods import EBAE_EBAR, NEW_TOKENS, QUERY_LIKELIHOOD, method
from llm_retriever.models.card import load_lineage, weights_digest
from llm_retriever.settings import AdaptationSettings, build
from llm_retriever.training.train import TrainingLog
from llm_retriever.training.vocabulary import extended

SHORT = {
    "passage_length": 130,
    "query_length": 40,
    "batch_size": 8,
    "micro_batch_size": 4,
    "max_steps": 12,
    "learning_rate": 2e-3,
    "precision": "fp32",
    "processes": 1,
}


class Step:
    """The step's inputs, and its output of the moment."""

    def __init__(self, backbone: Path, collection: Path, training_set: Path, adapted: Path) -> None:
        self.backbone, self.collection, self.training_set, self.adapted = backbone, collection, training_set, adapted

    def run(self, **settings) -> TrainingLog:
        given = build(AdaptationSettings, {**SHORT, **settings})
        return adapt(given, self.backbone, self.collection, self.training_set, self.adapted)

    def loss_of(self, model_directory: Path) -> float:
        """Loss of a saved model on the first training pairs, uncorrupted."""
        recipe = resolved_recipe(build(AdaptationSettings, {**SHORT, "corruption_ratio": 0}))
        lookup = Collection.open(self.collection).lookup()
        collate = PairCollator(recipe, ("eos",), AutoTokenizer.from_pretrained(model_directory), lookup)
        dataset = PairDataset(self.training_set, seed=0)
        model = AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32).eval()
        with torch.no_grad():
            return QueryLikelihoodLoss(True)(model, collate([dataset[i] for i in range(16)])).item()


@pytest.fixture
def step(backbone_directory: Path, collection_directory: Path, training_set_directory: Path, tmp_path: Path) -> Step:
    return Step(backbone_directory, collection_directory, training_set_directory, tmp_path / "adapted")


def contents(directory: Path) -> dict[str, bytes]:
    files = (path for path in sorted(directory.rglob("*")) if path.is_file() and path.name != SEAL)
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def test_none_passes_the_backbone_through(step: Step):
    log = step.run(method="none")
    assert contents(step.adapted) == contents(step.backbone)
    assert load_lineage(step.adapted) == load_lineage(step.backbone)
    assert (log.steps, log.examples) == ([], 0)


def test_none_does_not_depend_on_hard_links(step: Step, monkeypatch: pytest.MonkeyPatch):
    def refuse(source: str, target: str) -> None:
        raise OSError("operation not supported")

    monkeypatch.setattr("os.link", refuse)
    step.run(method="none")
    assert contents(step.adapted) == contents(step.backbone)


@pytest.mark.slow
@pytest.mark.parametrize("tune", ["full", "lora"])
def test_the_model_learns_to_generate_the_query_from_its_passage(step: Step, tune: str):
    log = step.run(tune=tune)
    assert len(log.steps) == 12
    assert log.examples == 12 * 8
    assert step.loss_of(step.adapted) < step.loss_of(step.backbone) - 0.05
    assert weights_digest(step.adapted) != weights_digest(step.backbone)


def test_the_adapted_backbone_keeps_its_head_tokenizer_and_dtype(step: Step):
    step.run(max_steps=2)
    before = AutoModelForCausalLM.from_pretrained(step.backbone)
    after, loading = AutoModelForCausalLM.from_pretrained(step.adapted, output_loading_info=True)
    assert not loading["missing_keys"]
    assert after.lm_head.weight.shape == before.lm_head.weight.shape
    assert not torch.equal(after.lm_head.weight, before.lm_head.weight)
    assert after.dtype == before.dtype
    text = "The river </s> is old 🙂"
    tokenise = [AutoTokenizer.from_pretrained(d)(text)["input_ids"] for d in (step.backbone, step.adapted)]
    assert tokenise[0] == tokenise[1]


def test_the_lineage_says_what_was_done_with_what(step: Step):
    step.run(max_steps=2, corruption_ratio=0.25, attention_block="off")
    lineage = load_lineage(step.adapted)
    (stage,) = lineage.stages
    assert lineage.digest == load_lineage(step.backbone).digest
    assert stage.stage == "ql"
    assert stage.data == TrainingSet.open(step.training_set).digest
    assert stage.examples == 16
    assert stage.seconds > 0
    assert stage.settings["corruption_ratio"] == 0.25
    assert stage.settings["attention_block"] is False
    assert stage.settings["loss_on"] == "query"
    assert stage.settings["schedule"]["max_steps"] == 2
    assert stage.settings["precision"] == "fp32"


@pytest.mark.slow
def test_the_same_seed_gives_the_same_model_and_another_seed_another(step: Step):
    digests = []
    for seed in (1, 1, 2):
        step.run(max_steps=3, seed=seed)
        digests.append(weights_digest(step.adapted))
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("recipe", QUERY_LIKELIHOOD)
def test_every_recipe_trains(step: Step, recipe: str):
    log = step.run(recipe=recipe, max_steps=2)
    assert all(torch.isfinite(torch.tensor(entry["loss"])) for entry in log.steps)
    assert load_lineage(step.adapted).stages[0].settings["document"]["prefix"] == (
        QUERY_LIKELIHOOD[recipe].document.prefix
    )


class Counted(QueryLikelihoodLoss):
    """Counts the micro-batches it sees, and ends the training after a number of them."""

    calls, last = 0, 10_000

    def __call__(self, model, batch):
        Counted.calls += 1
        if Counted.calls > Counted.last:
            raise KeyboardInterrupt
        return super().__call__(model, batch)


@pytest.mark.slow
def test_a_killed_adaptation_continues_as_if_nothing_had_happened(step: Step, monkeypatch: pytest.MonkeyPatch):
    settings = {"max_steps": 6, "checkpoint_minutes": 1e-6}
    whole = step.run(**settings)
    expected = weights_digest(step.adapted)
    monkeypatch.setattr(query_likelihood, "QueryLikelihoodLoss", Counted)
    monkeypatch.setattr(Counted, "last", 2 * 4)
    with pytest.raises(KeyboardInterrupt):
        step.run(**settings)
    monkeypatch.setattr(Counted, "calls", 0)
    resumed = step.run(**settings)
    assert Counted.calls == 2 * 2, "it began anew"
    assert [entry["loss"] for entry in resumed.steps] == [entry["loss"] for entry in whole.steps]
    assert weights_digest(step.adapted) == expected
    assert not any(step.adapted.parent.glob(".adapted.checkpoints/*")), "checkpoints of a finished training stay"


def test_a_failed_adaptation_leaves_nothing(step: Step):
    with pytest.raises(InputError, match="prompt alone takes"):
        step.run(passage_length=20)
    assert not step.adapted.exists()
    assert not list(step.adapted.parent.glob(".adapted*.partial"))


def test_a_training_set_of_another_collection_is_refused(step: Step, tmp_path: Path):
    from llm_retriever.data.preparation import prepare
    from llm_retriever.settings import CorpusSettings
    from tests.conftest import write_beir

    prepare(CorpusSettings(uri=str(write_beir(tmp_path / "source", number=30))), tmp_path / "other")
    step.collection = tmp_path / "other"
    with pytest.raises(InputError, match="another collection"):
        step.run()


def test_a_directory_without_lineage_is_refused(step: Step, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    step.backbone = tmp_path / "empty"
    with pytest.raises(InputError, match=r"backbone\.json: no such file; give the output of fetch_backbone"):
        step.run()


@pytest.mark.parametrize(
    ("method", "changes", "told"),
    [
        (
            "ql",
            {"passage_length": 200, "query_length": 100},
            "takes 200 + 1 (embedding tokens) + 100 (query); use at most 155",
        ),
        ("ebae_ebar", {"passage_length": 250}, "(prompt); use at most "),
        ("mntp", {"passage_length": 300}, "takes 300; use at most 256"),
        ("mntp+simcse", {"passage_length": 300}, "takes 300; use at most 256"),
    ],
)
def test_rows_longer_than_the_model_reads_are_refused_before_it_is_loaded(step, tmp_path, method, changes, told):
    short = tmp_path / "short"
    shutil.copytree(step.backbone, short)
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 256}))
    for weights in short.glob("*.safetensors"):
        weights.unlink()
    step.backbone = short
    with pytest.raises(InputError, match=r'"passage_length": the model reads at most 256 tokens') as caught:
        step.run(method=method, **changes)
    assert told in str(caught.value)
    assert not step.adapted.exists()


def test_query_likelihood_on_a_model_that_takes_no_mask_is_refused(step, tmp_path):
    step.backbone = Path(shutil.copytree(step.backbone, tmp_path / "opt"))
    config = OPTConfig(vocab_size=400, hidden_size=32, ffn_dim=48, num_hidden_layers=1, num_attention_heads=4)
    config.word_embed_proj_dim, config.max_position_embeddings = 32, 512
    OPTForCausalLM(config).save_pretrained(step.backbone)
    with pytest.raises(InputError, match=r'"method": OPTForCausalLM takes no mask that hides some of the text'):
        step.run(method="ql", **SHORT)


@pytest.mark.parametrize(("name", "told"), [("ql", True), ("mntp", False)])
def test_lost_windows_are_told_where_rows_are_longer(step, caplog, tmp_path, name, told):
    step.backbone = Path(shutil.copytree(step.backbone, tmp_path / "windows"))
    config = MistralConfig(sliding_window=128, max_position_embeddings=1024)
    config.save_pretrained(step.backbone)
    stage = build(AdaptationSettings, {"method": name})
    check_lengths(resolved_recipe(stage), resolved_method(stage), step.backbone)
    assert ("up to 401 tokens, also beyond their window of 128" in caplog.text) == told


def test_masking_is_a_setting_of_mntp():
    assert resolved_recipe(build(AdaptationSettings, {"method": "mntp", "masking": "all"})).masking == "all"


def test_rows_that_just_fit_are_long_enough_for_ebae_and_ebar(backbone_directory):
    recipe, row = EBAE_EBAR["default"], method("llama2vec")
    with extended(backbone_directory, NEW_TOKENS) as directory:
        tokenizer = AutoTokenizer.from_pretrained(directory)
    text = "harbour lantern " * 400
    batch = JointCollator(recipe, row, tokenizer)([TextPair(text, text)])
    assert sum(parts(recipe, row, tokenizer).values()) == int(batch["position_ids"].max()) + 1
