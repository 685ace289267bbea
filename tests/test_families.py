"""Families of models: as stock, alignment as the plain forward, and end to end or refused in one line.

`make families` runs all of them through all verbs and writes docs/models.md; here a sample goes end to end.
"""

from pathlib import Path

import pytest
import torch

from gag.errors import MismatchError
from gag.models.backbone import Backbone
from gag.models.dry_run import check_serves
from gag.models.language_model import pad_left
from gag.models.loading import load_backbone
from gag.planning.plan import plan
from gag.project.project import load_project
from gag.project.settings import ModelSettings
from tools.families.checks import Stock, alignment, differs_from_stock, through_all_verbs, write_project
from tools.families.shapes import FAMILIES, WRAPPERS, write_model

REFUSED = {
    "gemma4_per_layer": "per-layer inputs",
    "mamba2": "cannot serve",
    "qwen2_5_vl": "no text model of its own",
}
SERVE = sorted((FAMILIES.keys() | WRAPPERS.keys()) - REFUSED.keys())
WINDOWED = [
    "mistral",
    "gemma2",
    "gemma3_text",
    "cohere2",
    "olmo3",
    "gpt_oss",
    "gpt_neo",
    "llama4_text",
    "exaone4",
]


def loaded(folder: Path) -> Backbone:
    return load_backbone(ModelSettings(model=str(folder), device="cpu"), folder.parent)


@pytest.mark.parametrize("family", SERVE)
def test_a_family_is_the_stock_model_and_alignment_the_plain_forward(family: str, tmp_path: Path) -> None:
    base = loaded(write_model(family, tmp_path / family))
    assert differs_from_stock(base, Stock(base, tmp_path / family)) == ""
    found = alignment(base)
    assert found.loss <= 1e-5 and found.gradient <= 1e-5
    ids = base.prompts.plain("What is it really?")
    states = base.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    for layers in ((0,), (1,), (-2, 0)):
        read = base.layer_states(pad_left([base.embed(ids)]), layers)[0]
        assert torch.allclose(read, torch.stack([states[layer][0] for layer in layers], 1), atol=1e-6)


@pytest.mark.parametrize("family", WINDOWED)
def test_a_window_shares_its_prefix_too(family: str, tmp_path: Path) -> None:
    assert not loaded(write_model(family, tmp_path / family)).recurrent


@pytest.mark.parametrize("family", REFUSED)
def test_what_cannot_serve_is_refused_in_one_line_when_it_is_loaded(family: str, tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match=REFUSED[family]) as caught:
        loaded(write_model(family, tmp_path / family))
    assert "\n" not in str(caught.value) and "name a model" in str(caught.value)


@pytest.mark.parametrize("family", ["gemma4_per_layer", "qwen2_5_vl"])
def test_a_plan_refuses_it_too(family: str, tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match=REFUSED[family]):
        plan(load_project(write_project(tmp_path, family)), "m")


@pytest.mark.parametrize(
    ("family", "tuning"),
    [("gemma3", "lora"), ("qwen3_5_text", "lora"), ("gpt2", "lora"), ("bloom", "lora"), ("falcon_h1", "lora"),
     ("gpt_oss", "lora"), ("qwen3_moe", "full"), ("granitemoehybrid", "full"), ("opt_350m", "lora")],
)  # fmt: skip
def test_a_family_goes_through_all_verbs(family: str, tuning: str, tmp_path: Path) -> None:
    through_all_verbs(load_project(write_project(tmp_path, family, tuning)))


@pytest.mark.parametrize("family", ["qwen3_moe", "lfm2", "gemma3_text", "opt", "bloom", "gemma3", "jamba"])
def test_a_plan_is_made_on_a_cpu_and_for_gpus(family: str, tmp_path: Path) -> None:
    wide = {"readout": {"max_new_tokens": 100, "batch_tokens": 1000}}  # beyond the window
    project = load_project(write_project(tmp_path, family, **wide))
    for gpus in (None, "1x80GB"):
        assert {stage.name for stage in plan(project, "m", gpus).stages} >= {
            "adapt",
            "readouts",
            "align",
            "ask",
        }


def test_the_text_model_of_a_wrapper_is_taken_by_itself(tmp_path: Path) -> None:
    base = loaded(write_model("gemma3", tmp_path / "mm"))
    assert type(base.model).__name__ == "Gemma3ForCausalLM"
    assert not any("vision" in name for name, _ in base.model.named_parameters())


def test_what_a_dry_run_measures_is_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part of the method that a model does otherwise than its plain forward is refused by name."""
    base = loaded(write_model("qwen3", tmp_path / "m"))
    forward = base.decoder.forward

    def forgets_its_mask(*args, **kwargs):
        return forward(*args, **kwargs | {"attention_mask": None, "position_ids": None})

    def forgets_its_cache(*args, **kwargs):
        if kwargs.get("past_key_values") is not None:
            kwargs |= {
                "past_key_values": None,
                "use_cache": False,
                "attention_mask": None,
                "position_ids": None,
            }
        return forward(*args, **kwargs)

    for broken, named in (
        (forgets_its_mask, "a row in a padded batch"),
        (forgets_its_cache, "behind cached tokens"),
    ):
        with monkeypatch.context() as patched, pytest.raises(MismatchError, match=named):
            patched.setattr(base.decoder, "forward", broken)
            check_serves(base)
    check_serves(base)
