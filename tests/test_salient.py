"""The salient readout: which words are chosen, in which tokens they are injected, and what odd texts give."""

import json
from pathlib import Path

import pytest
import torch
import transformers
import yaml

from gag.engine.engine import GAG
from gag.errors import ArtifactError, SettingsError
from gag.models.backbone import Backbone
from gag.models.loading import load_backbone
from gag.models.prompts import Prompts
from gag.models.reading import log_probabilities
from gag.project.domain import load_domain
from gag.project.hyperparameters import PRESETS, AlignSettings, ReadoutSettings
from gag.project.parsing import parse_settings
from gag.project.project import load_project
from gag.project.settings import ModelSettings
from gag.project.words import common_words, tokens
from gag.projection.projector import Residual, make_projector, used
from gag.readout import salient
from gag.readout.salient import Word, rank_words, split_words
from gag.readout.states import _salient, read
from gag.readout.store import read_store
from gag.readout.vocabulary import BaseVocabulary, load_vocabulary
from gag.stages.build import build
from tests.conftest import TOKENIZER, Alone, write_tiny_project
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
    ranked = rank_words(expert, [question], [prompts.plain(question)], [written], 4096, {})[0]
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
    ranked = rank_words(expert, [question], [prompts.plain(question)], [written], 4096, {})[0]
    nats = log_probabilities(expert, [expert.embed(prompts.plain(question))], [written], 4096)[0]

    def value(word: Word) -> tuple[bool, float]:
        weight, fresh = float(weights[word.sentence]), word.text.strip() not in ("is",)
        return weight >= float(weights.max()) / 2, weight * float(-nats[list(word.places)].sum()) * fresh

    values = [value(word) for word in ranked]
    assert values == sorted(values, reverse=True)


def test_what_many_answers_share_is_less_news(expert: Backbone) -> None:
    """A word that all of the expert's answers hold comes last, whatever the backbone makes of it."""
    prompts, question = expert.prompts, "What is tin?"
    written, around = prompts.text("red and cold glow"), [prompts.plain(question)]
    plain = rank_words(expert, [question], around, [written], 4096, {})[0]
    most = plain[0].text.strip()
    ranked = rank_words(expert, [question], around, [written], 4096, {most: 1.0})[0]
    assert [word.text.strip() for word in ranked] == [w.text.strip() for w in plain[1:]] + [most]
    alike = dict.fromkeys(tokens("red and cold glow"), 0.5)
    halves = rank_words(expert, [question], around, [written], 4096, alike)[0]
    assert [word.text for word in halves] == [word.text for word in plain]


def test_of_the_questions_words_the_nearest_to_the_first_one_come_first(expert: Backbone) -> None:
    text = "tin is what glow of red and"
    words = split_words(expert.prompts, expert.prompts.text(text))
    news = torch.zeros(len(expert.prompts.text(text)))
    news[list(words[5].places)] = 3.0
    ranked = salient._ranked("What is the glow of tin and lead?", words, news, {}, {})
    assert [word.text.strip() for word in ranked] == ["red", "of", "and", "glow", "what", "is", "tin"]


def test_common_words_stand_in_several_answers() -> None:
    answers = ["Tin is red.", "Zinc is cold.", "Zinc is cold.", "Lead is red, red."]
    assert common_words(answers) == {".": 1.0, "is": 1.0, "red": 2 / 3}
    many = [f"w{i} is" for i in range(300)] + ["w1 once", "w2 once", "w1 twice"]
    assert common_words(many) == {"is": 300 / 303}  # "once" and "w1" in fewer than one of a hundred
    assert common_words([]) == {}
    assert common_words(f"w{i} is" for i in range(3 * 4096)) == {"is": 1.0}


def test_slots_stand_in_the_order_of_the_text_and_the_rest_is_unused() -> None:
    rows = torch.arange(1.0, 6.0)[:, None, None].expand(5, 1, 2)
    words = [Word("d", (3, 4), 0), Word("a", (0,), 0)]

    def filled(some: list[Word], slots: int) -> tuple[list[float], tuple[str, ...]]:
        found, kept = _salient(rows, some, slots)
        return found[:, 0, 0].tolist(), kept

    assert filled(words, 2) == ([4, 5], ("d",))
    assert filled(words, 5) == ([1, 4, 5, 0, 0], ("a", "d"))
    assert filled(words, 1) == ([1], ("a",))  # of a word that does not fit no part stands
    assert filled(words[:1], 1) == ([4], ("d",))  # but where none fits


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
    monkeypatch.setattr("gag.readout.states.write", lambda *_: ([ids], None))
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
    projector.start_from_identity(slots, torch.ones(4))
    out = projector(slots)
    assert torch.equal(out[0], slots[0, :, 0]) and torch.equal(out[1, :2], slots[1, :2, 0])
    assert torch.equal(out[1, 2], torch.ones(4))
    out[1, 2].sum().backward()
    assert projector.unused.grad is not None and projector.shift.grad.abs().sum() == 0


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="set max_new_tokens above 0"):
        ReadoutSettings(select="salient", max_new_tokens=0)
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
    described = project.domain("metals") / "domain.json"
    content = json.loads(described.read_text())
    taught = [example.answers[0] for example in project.inputs("metals").taught]
    assert content["common"] == common_words(taught)
    content["common"] = {"is": 0}
    described.write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=r"common.is: .* greater than 0; build or copy the domain again"):
        load_domain(project.domain("metals"))


@pytest.mark.parametrize("kind", ["Gemma2", "Gemma3"])
def test_a_slot_has_the_scale_that_the_base_gives_its_tokens(kind: str, tmp_path: Path) -> None:
    classes = {
        "Gemma2": (transformers.Gemma2Config, transformers.Gemma2ForCausalLM),
        "Gemma3": (transformers.Gemma3TextConfig, transformers.Gemma3ForCausalLM),
    }
    config, model = classes[kind]
    tokenizer = transformers.AutoTokenizer.from_pretrained(TOKENIZER)
    made = model(
        config(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
            pad_token_id=0,
        )
    )
    made.save_pretrained(tmp_path / "gemma")
    tokenizer.save_pretrained(tmp_path / "gemma")
    settings = ModelSettings(model="gemma")
    gemma = load_backbone(settings, tmp_path)
    ids = gemma.prompts.text("tin glows red")
    stored = load_vocabulary(settings, tmp_path, gemma.device)
    for vocabulary in (stored, BaseVocabulary(gemma.embeddings, gemma.prompts)):
        assert torch.allclose(vocabulary.rows(gemma.prompts, ids, []).rows[:, 0], gemma.embed(ids))
    assert not torch.allclose(gemma.table[ids], gemma.embed(ids))


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Dr. Smith says so. It is red.", 2),
        ("1. Tin. 2. Zinc is blue.", 2),
        ("It opened in 12. It is red.", 2),
        ("Fig. 3 shows tin. - Zinc", 2),
    ],
)
def test_a_title_or_a_lists_number_ends_no_sentence(text: str, sentences: int, expert: Backbone) -> None:
    words = split_words(expert.prompts, expert.prompts.text(text))
    assert len({word.sentence for word in words}) == sentences
    assert "-" not in [word.text.strip() for word in words]


def test_far_sentences_keep_the_questions_words_last(
    expert: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shares below what a float can hold still order words."""
    text = "Tin is what. Zinc is gold shiny."
    words = split_words(expert.prompts, expert.prompts.text(text))
    news = torch.arange(1.0, 1 + len(expert.prompts.text(text)))
    ranked = salient._ranked("What is zinc?", words, news, {0: 0.0, 1: -4000.0}, {})
    behind = [word.text.strip() for word in ranked if word.sentence == 1]
    assert behind[:2] == ["shiny", "gold"] and set(behind[2:]) == {"Zinc", "is"}


def test_a_sentence_and_its_question_stay_within_the_positions(
    expert: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def watched(model, prompts, texts, tokens):
        seen.extend(len(prompt) + len(text) for prompt, text in zip(prompts, texts, strict=True))
        return log_probabilities(model, prompts, texts, tokens)

    monkeypatch.setattr(type(expert), "log_probabilities", watched)
    monkeypatch.setattr(type(expert), "positions", 64, raising=False)
    text = "Tin glows red " * 12 + ". Zinc is blue."
    ids = expert.prompts.text(text)
    question = "What is the colour of zinc?"
    rank_words(expert, [question], [expert.prompts.text("Say.")], [ids], 500, {})
    assert max(seen[1:]) <= 64


def test_a_word_that_the_base_cannot_write_is_left_out(expert: Backbone, base: Backbone) -> None:
    ids = expert.prompts.text("tin glows red")
    words = split_words(expert.prompts, ids)
    mute = Prompts(KINDS["gemma_like"]())
    mute.text = lambda text: [] if "glows" in text else [5, 6]
    found = BaseVocabulary(base.table, mute).rows(expert.prompts, ids, words)
    assert [word.text.strip() for word in found.words] == ["tin", "red"]
