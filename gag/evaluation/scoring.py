"""The metrics of the settings over many answers: one scorer for `gag evaluate` and `gag compare`."""

from collections.abc import Callable, Collection, Sequence
from functools import cached_property

from gag.engine.engine import ProjectGAG
from gag.evaluation import metrics
from gag.evaluation.bertscore import BackboneStates, BertScorer, TransformerStates, sentence_similarity
from gag.project.settings import EncoderSettings
from gag.routing.encoders import SentenceEncoder
from gag.routing.query_encoder import BackboneEncoder, QueryEncoder

SIMILARITY_TOKENS = 512  # of an answer that similarity reads
Golds = Sequence[tuple[str, ...]]
BY_WORDS: dict[str, Callable[[str, tuple[str, ...]], float]] = {
    "contains": metrics.contains,
    "contains_published": metrics.contains_published,
    "exact": metrics.exact,
    "f1": metrics.f1,
}


class Scorer:
    """Score answers by any metric; an encoder is loaded once, when its metric is first asked for."""

    def __init__(self, gag: ProjectGAG):
        self._gag = gag

    def prepare(self, metrics: Collection[str]) -> None:
        """Load the encoders of metrics, so that a missing one is said before the first answer."""
        if "bertscore" in metrics:
            _ = self._bertscore
        if "similarity" in metrics:
            _ = self._sentences

    def score(self, metric: str, answers: Sequence[str], golds: Golds) -> list[float]:
        """Score each answer by its best gold, 0..1, but for similarity: a cosine."""
        if metric == "bertscore":
            return self._bertscore.score(answers, golds)
        if metric == "similarity":
            return sentence_similarity(self._sentences, answers, golds)
        return [float(BY_WORDS[metric](a, g)) for a, g in zip(answers, golds, strict=True)]

    @cached_property
    def _bertscore(self) -> BertScorer:
        chosen = self._gag.project.settings.evaluation
        if chosen.bertscore == "expert":
            return BertScorer(BackboneStates(self._gag.experts.backbone))
        root = self._gag.project.root
        return BertScorer(TransformerStates(chosen.bertscore, chosen.bertscore_layer, root))

    @cached_property
    def _sentences(self) -> QueryEncoder:
        return similarity_encoder(self._gag, SIMILARITY_TOKENS)


def similarity_encoder(gag: ProjectGAG, max_tokens: int) -> QueryEncoder:
    """Load the encoder of evaluation.similarity; `expert` is the expert backbone, which has its own limit."""
    name = gag.project.settings.evaluation.similarity
    if name == "expert":
        experts = gag.experts
        return BackboneEncoder(experts.backbone, experts.facts.fingerprint, gag.project.settings.router)
    encoder = EncoderSettings(kind="sentence-transformers", model=name)
    settings = gag.project.settings.router.changed(encoder=encoder, max_tokens=max_tokens)
    return SentenceEncoder(settings, gag.project.root)
