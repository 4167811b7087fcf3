"""What each step can be told: one frozen dataclass a step, the only source of names, types, defaults, limits and help.

The same class feeds the Kubeflow signature, the command line, the validation at the door and the manifest of what was
made. Where a method's published recipe has an opinion (`llm_retriever.methods`), the default here is "unset": -1 for
numbers, "" for texts, and the recipe decides.
"""

from llm_retriever.methods.overrides import UNSET_NUMBER, UNSET_TEXT, is_unset
from llm_retriever.settings.common import Place
from llm_retriever.settings.corpus import BackboneSettings, CorpusSettings, FingerprintSettings
from llm_retriever.settings.evaluation import CompareSettings, EvaluationSettings
from llm_retriever.settings.index import EncodingSettings, IndexSettings, PartSettings
from llm_retriever.settings.mining import MiningSettings
from llm_retriever.settings.parameters import Parameter, as_dict, build, nearest, parameters
from llm_retriever.settings.promotion import PromotionSettings
from llm_retriever.settings.training import AdaptationSettings, TuningSettings
from llm_retriever.settings.variant import VariantSettings

__all__ = [
    "UNSET_NUMBER",
    "UNSET_TEXT",
    "AdaptationSettings",
    "BackboneSettings",
    "CompareSettings",
    "CorpusSettings",
    "EncodingSettings",
    "EvaluationSettings",
    "FingerprintSettings",
    "IndexSettings",
    "MiningSettings",
    "Parameter",
    "PartSettings",
    "Place",
    "PromotionSettings",
    "TuningSettings",
    "VariantSettings",
    "as_dict",
    "build",
    "is_unset",
    "nearest",
    "parameters",
]
