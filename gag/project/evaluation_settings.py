"""The settings of evaluation: the metrics, and what computes them."""

from typing import Any, Literal

from pydantic import Field

from gag.errors import SettingsError
from gag.project.marks import Settings, result

Metric = Literal["contains", "contains_published", "exact", "f1", "bertscore", "similarity"]


class VariantSettings(Settings):
    """Another readout and projector of the same experts: what differs from the project's own settings."""

    readout: dict[str, Any] = result({}, description="settings of `readout` that differ")
    align: dict[str, Any] = result({}, description="settings of `align` that differ")


class EvaluationSettings(Settings):
    """How answers are judged."""

    metrics: dict[str, tuple[Metric, ...]] = result(
        {"general": ("contains",), "*": ("bertscore", "similarity")},
        description="a row's `dataset_name`, or else its domain -> metrics, the first of them the "
        "main one; *: others",
    )
    bertscore: str = result(
        "allenai/scibert_scivocab_uncased",
        description="encoder of BERTScore; expert: the expert backbone's last states",
    )
    bertscore_layer: int = result(
        8, ge=1, description="of that encoder; the expert backbone has its last one read"
    )
    similarity: str = result(
        "sentence-transformers/all-mpnet-base-v2",
        description="sentence encoder; expert: the expert backbone's mean",
    )
    colbert: str | None = result(
        None, description="ColBERT checkpoint of `gag compare`, an id or a folder (default: no such method)"
    )
    variants: dict[str, VariantSettings] = Field(
        default={},
        description="other versions of GAG for `gag compare`, by name: readout and align where they differ",
    )

    def of(self, dataset: str, domain: str | None) -> tuple[Metric, ...]:
        """Return the metrics of a data set, or else of a domain."""
        named = self.metrics.get(dataset) or self.metrics.get(domain or "") or self.metrics.get("*")
        if not named:
            raise SettingsError(
                f"no metric for the data set {dataset!r}; add it to evaluation.metrics in gag.yaml, or *"
            )
        return named
