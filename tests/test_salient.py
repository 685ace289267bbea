"""The salient readout: which words are chosen, in which tokens they are injected, and what odd texts give."""

from pathlib import Path

import pytest
import torch
import yaml

from gag.engine.engine import GAG
from gag.errors import SettingsError
from gag.models.backbone import Backbone
from gag.models.likelihood import log_probabilities
from gag.models.prompts import Prompts
from gag.project.hyperparameters import PRESETS, AlignSettings, ReadoutSettings
from gag.project.parsing import parse_settings
from gag.project.project import load_project
from gag.projection.projector import Residual, make_projector, used
from gag.readout.salient import Word, rank_words, split_words
from gag.readout.states import _salient, read
from gag.readout.store import read_store
from gag.readout.vocabulary import BaseVocabulary
from gag.stages.build import build
from tests.conftest import Alone, write_tiny_project
from tests.tokenizers_of_kinds import KINDS

SETTINGS = ReadoutSettings(**PRESETS["salient"]["readout"], max_new_tokens=6)


def words_of(model: Backbone) -> BaseVocabulary:
    return BaseVocabulary(model.table, model.prompts)


def test_words_are_cut_at_spaces_and_lose_the_signs_around_them(expert: Backbone) -> None:
    text = 'Tin melts at 2.5 degrees, says "Vax-Bado". It is red!'
    words = split_words(expert.prompts, expert.prompts.text(text))
    found = [word.text.strip() for word in words]
    assert "".join(found).replace(" ", "") == "Tinmeltsat2.5degreessaysVax-BadoItisred"
    assert words[0].sentence == 0 and words[-1].sentence == 1
    places = [place for word in words for place in word.places]
    assert places == sorted(set(places))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_pieces_of_any_tokenizer_add_up_to_the_text(kind: str) -> None:
    prompts = Prompts(KINDS[kind]())
    ids = prompts.text("Ceria holds platinum at 300 degrees.")
    pieces = prompts.pieces(ids)
    assert "".join(text for _, text in pieces).split() == prompts.decode(ids).split()
    assert [place for places, _ in pieces for place in places] == list(range(len(ids)))


def test_scripts_without_spaces_have_a_word_for_each_character() -> None:
    prompts = Prompts(KINDS["gemma_like"]())
    words = split_words(prompts, prompts.text("锡在232度熔化。它是银色的。"))
    assert [word.text for word in words] == [*"锡在", "232", *"度熔化它是银色的"]
    assert [word.sentence for word in words] == [0] * 6 + [1] * 5


def test_log_probabilities_are_those_of_the_plain_forward(expert: Backbone) -> None:
    prompt, texts = expert.prompts.plain("What is tin?"), [[7, 8, 9], [11], []]
    found = log_probabilities(expert, [expert.embed(prompt)] * 3, texts, 40)
    for ids, got in zip(texts, found, strict=True):
        chances = expert.model(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
        wanted = [chances[len(prompt) + k - 1, token] for k, token in enumerate(ids)]
        assert torch.allclose(got, torch.tensor(wanted), atol=1e-5)


def test_words_of_the_question_come_last_and_surprising_ones_first(expert: Backbone) -> None:
    prompts, question = expert.prompts, "What is tin?"
    written = prompts.text("tin is red and what")
    ranked = rank_words(expert, [question], [prompts.plain(question)], [written], 4096)[0]
    assert {word.text.strip() for word in ranked[:2]} == {"red", "and"}
    nats = log_probabilities(expert, [expert.embed(prompts.plain(question))], [written], 4096)[0]
    news = [-float(nats[list(word.places)].sum()) for word in ranked[:2]]
    assert news == sorted(news, reverse=True)


def test_the_sentence_that_makes_the_question_likely_counts(expert: Backbone) -> None:
    prompts, question = expert.prompts, "What is tin?"
    sentences = ["lead glows red.", "zinc is cold."]
    written = prompts.text(" ".join(sentences))
    behind = [expert.embed(prompts.ask_expert(s, "Ask a question.")) for s in sentences]
    likely = [
        float(row.sum()) for row in log_probabilities(expert, behind, [prompts.text(question)] * 2, 4096)
    ]
    weights = torch.tensor(likely).softmax(0)
    ranked = rank_words(expert, [question], [prompts.plain(question)], [written], 4096)[0]
    nats = log_probabilities(expert, [expert.embed(prompts.plain(question))], [written], 4096)[0]

    def value(word: Word) -> tuple[bool, float]:
        weight, fresh = float(weights[word.sentence]), word.text.strip() not in ("is",)
        return weight >= float(weights.max()) / 2, weight * float(-nats[list(word.places)].sum()) * fresh

    values = [value(word) for word in ranked]
    assert values == sorted(values, reverse=True)


def test_slots_stand_in_the_order_of_the_text_and_the_rest_is_unused() -> None:
    rows = torch.arange(1.0, 6.0)[:, None, None].expand(5, 1, 2)
    words = [Word("d", (3, 4), 0), Word("a", (0,), 0)]
    full = _salient(rows, [1, 2, 3, 4, 5], words, 2)
    assert full.slots[:, 0, 0].tolist() == [4, 5] and full.words == ("d",)
    more = _salient(rows, [1, 2, 3, 4, 5], words, 5)
    assert more.slots[:, 0, 0].tolist() == [1, 4, 5, 0, 0] and more.words == ("a", "d")
    cut = _salient(rows, [1, 2, 3, 4, 5], words, 1)
    assert cut.slots[:, 0, 0].tolist() == [4] and cut.words == ("d",)


def test_a_slot_is_the_bases_embedding_and_batched_is_single(expert: Backbone, base: Backbone) -> None:
    questions = ["What is tin?", "Name the glow of zinc.", "Why?"]
    vocabulary = words_of(base)
    batched = read(Alone(expert), "", questions, "Say.", SETTINGS, vocabulary)
    singles = [read(Alone(expert), "", [question], "Say.", SETTINGS, vocabulary) for question in questions]
    assert batched.slots.shape == (3, 8, 1, base.width)
    assert torch.equal(batched.slots, torch.cat([single.slots for single in singles]))
    table = {tuple(row) for row in base.table.tolist()}
    for slots in batched.slots[:, :, 0]:
        assert all(tuple(row) in table for row in slots.tolist() if any(row))


def test_states_can_be_salient_too(expert: Backbone) -> None:
    settings = ReadoutSettings(select="salient", layers=(-1, 1), slots=3, max_new_tokens=6)
    found = read(Alone(expert), "", ["What is tin?"], "Say.", settings)
    assert found.slots.shape == (1, 3, 2, expert.width)


@pytest.mark.parametrize(
    "text", ["", "tin", "tin tin tin tin tin tin tin tin tin tin", ". . .", "What is tin?"]
)
def test_odd_texts_give_slots(
    text: str, expert: Backbone, base: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing, one word, one word many times, signs alone, and the question's own words."""
    ids = expert.prompts.text(text) if text else []
    monkeypatch.setattr("gag.readout.states.generate_background", lambda *_: [ids])
    found = read(Alone(expert), "", ["What is tin?"], "Say.", SETTINGS, words_of(base))
    words = split_words(expert.prompts, ids)
    filled = used(found.slots)[0].sum().item()
    assert filled == min(8, sum(len(word.places) for word in words))
    assert found.empty == [not ids] and found.texts == [expert.prompts.decode(ids)]
    if text == "What is tin?":
        assert {"tin", "is", "What"} <= set(found.words[0])


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_base_of_other_tokens_gets_the_words(kind: str, expert: Backbone) -> None:
    prompts = Prompts(KINDS[kind]())
    table = torch.arange(float(max(prompts.tokens.values()) + 1))[:, None]
    ids = expert.prompts.text("tin glows red")
    words = split_words(expert.prompts, ids)
    found = BaseVocabulary(table, prompts).rows(expert.prompts, ids, [words[2], words[0]])
    chosen = [int(row) for row in found.rows.flatten()]
    assert prompts.decode(chosen).replace(" ", "").lower() == "tinred"
    assert [word.text.strip() for word in found.words] == ["red", "tin"]
    assert found.words[1].places[0] == 0  # the text's order, whatever the rank


def test_the_residual_begins_as_the_identity_and_learns_what_unused_means() -> None:
    projector = make_projector("residual", (3, 1, 4), 4)
    assert isinstance(projector, Residual)
    slots = torch.randn(2, 3, 1, 4)
    slots[1, 2] = 0
    projector.start_from_identity(slots, torch.ones(5, 4))
    out = projector(slots)
    assert torch.equal(out[0], slots[0, :, 0]) and torch.equal(out[1, :2], slots[1, :2, 0])
    assert torch.equal(out[1, 2], torch.ones(4))
    out[1, 2].sum().backward()
    assert projector.unused.grad is not None and projector.shift.grad.abs().sum() == 0


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="start: identity"):
        AlignSettings(projector="residual", start="ridge")
    with pytest.raises(SettingsError, match="readout.space: vocabulary"):
        parse_settings(
            {
                "base": {"model": "b"},
                "expert": {"model": "e"},
                "align": {"projector": "residual", "start": "identity"},
            }
        )


def test_the_preset_builds_and_answers(tmp_path: Path) -> None:
    root = write_tiny_project(tmp_path)
    content = yaml.safe_load((root / "gag.yaml").read_text())
    content |= {"preset": "salient", "readout": {"slots": 3, "max_new_tokens": 6, "batch_tokens": 150}}
    (root / "gag.yaml").write_text(yaml.safe_dump(content))
    project = load_project(root)
    assert project.settings.readout.select == "salient" and project.settings.align.projector == "residual"
    build(project, ["metals"])
    gag = GAG.open(project)
    knowledge = gag.read(["What is in metals number 1?"], "metals")[0]
    assert knowledge.vectors.shape[0] == 3 and knowledge.words
    stored = read_store(project.run("metals", "readouts") / "val")
    assert stored.facts["settings"]["select"] == "salient"
    assert "words that are news" in (project.domain("metals") / "README.md").read_text()
    assert gag.ask("What is in metals number 1?", domain="metals").tokens_added == 3
