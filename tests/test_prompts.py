"""User text is plain text, and prompts are the same whatever stands at their end."""

import datetime
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from tokenizers.normalizers import NFC
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from gag.errors import MismatchError
from gag.models.prompts import Prompts
from gag.project.settings import PromptSettings
from gag.projection.alignment import shared_opening
from tests.conftest import TOKENIZER
from tests.tokenizers_of_kinds import CONTROL, KINDS, PLAIN, TEMPLATES

S, TELL, KIND = (PromptSettings(answer=words) for words in ("s", "Tell.", "be kind"))
LAYOUTS = (  # the default, and those of the method's two published versions
    PromptSettings().layout,
    "{answer}\nQuestion: {question}\nKnowledge: {knowledge}\n ",
    "{answer}\nQuestion: {question}\nKnowledge: {knowledge}\n",
    "{question} {knowledge} ... {answer}",
)
QWEN = Path(__file__).parents[2] / "shared" / "data" / "qwen3"
NOT_SPECIAL = [
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "<|fim_prefix|>",
    "<|repo_name|>",
]


def with_qwen_like_tokens() -> PreTrainedTokenizerBase:
    """The bundled tokenizer with added tokens that are not marked special, as Qwen has."""
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    tokenizer.add_tokens(NOT_SPECIAL, special_tokens=False)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<|vision_pad|>"]}
    )
    return tokenizer


def check_no_control_token(tokenizer: PreTrainedTokenizerBase) -> None:
    prompts = Prompts(tokenizer)
    added = tokenizer.added_tokens_decoder
    empty = len([i for i in prompts.plain("") if i in added])
    for token in added.values():
        for text in (token.content, f"x{token.content}y", f" {token.content} ", token.content * 2):
            ids = prompts.text(text)
            assert added.keys().isdisjoint(ids), token
            assert token.content in tokenizer.decode(ids)
            assert sum(i in added for i in prompts.plain(text)) == empty


def test_no_added_token_can_be_typed() -> None:
    check_no_control_token(with_qwen_like_tokens())


@pytest.mark.skipif(not QWEN.is_dir(), reason="the Qwen tokenizer is not at hand")
def test_no_added_token_of_qwen_can_be_typed() -> None:
    tokenizer = AutoTokenizer.from_pretrained(QWEN)
    assert len(tokenizer.added_tokens_decoder) > 20
    check_no_control_token(tokenizer)


def test_instructions_and_knowledge_are_plain_text_too() -> None:
    tokenizer = with_qwen_like_tokens()
    prompts = Prompts(tokenizer)
    calm = prompts.with_text("q", KIND, "fact")
    loud = prompts.with_text(
        "q <|end|>", PromptSettings(answer="be <|im_start|> kind <|user|>"), "fact <think>"
    )
    control = tokenizer.added_tokens_decoder.keys()
    assert [i for i in calm if i in control] == [i for i in loud if i in control]
    assert sum(i in control for i in prompts.ask_expert("q", "<|system|>")) == sum(
        i in control for i in prompts.ask_expert("q", "s")
    )


def test_markers_in_user_text_are_text() -> None:
    prompts = Prompts(AutoTokenizer.from_pretrained(TOKENIZER))
    marked = prompts.with_knowledge("a \ue0f2 \ue0f1 b", KIND)
    plain = prompts.with_knowledge("a b", KIND)
    assert marked.after == plain.after


def test_knowledge_prompt_is_the_text_prompt_around_its_knowledge() -> None:
    prompts = Prompts(AutoTokenizer.from_pretrained(TOKENIZER))
    parts = prompts.with_knowledge("What?", TELL)
    assert parts.before + prompts.text("It is so.") + parts.after == prompts.with_text(
        "What?", TELL, "It is so."
    )
    other = prompts.with_knowledge("Why not?", TELL)
    opening = shared_opening([parts.before, other.before])
    assert 0 < len(opening) < len(parts.before)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("source", [TOKENIZER, QWEN])
def test_the_bases_turn_is_encoded_as_one_text_around_the_vectors(layout: str, source: Path) -> None:
    """As with a token of its own in the vectors' place, which is how the published code encodes it."""
    if not source.is_dir():
        pytest.skip("the Qwen tokenizer is not at hand")
    stock, ours = AutoTokenizer.from_pretrained(source), AutoTokenizer.from_pretrained(source)
    for one in (stock, ours) if source == TOKENIZER else ():  # without the spaces that it puts into a text
        one.backend_tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
        one.backend_tokenizer.normalizer = NFC()
    words = PromptSettings(answer="You know alloys.\nPlease answer from the knowledge.", layout=layout)
    prompts = Prompts(ours)
    stock.add_tokens(["<HERE>"])
    here = stock.convert_tokens_to_ids("<HERE>")
    for question in ("What melts first?", "  a\n", "\u00e9toile ...", "5.", "... \u2160"):
        held = {"answer": words.answer, "question": question, "knowledge": "<HERE>" * 2}
        content = layout.format(**held)
        whole = stock.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=False, add_generation_prompt=True, enable_thinking=False,
        )  # fmt: skip
        ids = stock(whole, add_special_tokens=False)["input_ids"]
        place, parts = ids.index(here), prompts.with_knowledge(question, words)
        assert (parts.before, parts.after) == (ids[:place], ids[place + 2 :])


@pytest.mark.parametrize(
    "layout", ["{question}", "{knowledge} {question}", "{question}{question}{knowledge}", "", "{answer}"]
)
def test_a_layout_without_its_places_is_refused(layout: str) -> None:
    with pytest.raises(ValueError, match="layout needs"):
        PromptSettings(layout=layout)


def test_a_system_turn_is_said_whatever_the_layout() -> None:
    for layout in (LAYOUTS[0], "{question} {knowledge}"):
        words = PromptSettings(answer="Tell.", layout=layout)
        assert words.around("Be brief.")[0].startswith("Be brief.\n\n")


def test_an_instruction_that_names_a_place_is_text() -> None:
    prompts = Prompts(AutoTokenizer.from_pretrained(TOKENIZER))
    odd = prompts.with_text("Why?", PromptSettings(answer="Say {question} {knowledge} {answer}."), "So.")
    assert "Say {question} {knowledge} {answer}." in prompts.decode(odd)


def test_an_answer_ends_with_the_turns_end() -> None:
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    prompts = Prompts(tokenizer)
    assert prompts.answer("gold")[-1] == tokenizer.convert_tokens_to_ids("<|end|>")
    assert prompts.decode(prompts.answer("gold")) == "gold"


def stock(tokenizer: PreTrainedTokenizerBase, question: str) -> list[int]:
    """Return the prompt as transformers makes it."""
    turn = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(
        turn, add_generation_prompt=True, enable_thinking=False, return_dict=True
    )["input_ids"]


@cache
def made(kind: str, template: str) -> tuple[PreTrainedTokenizerBase, Prompts]:
    tokenizer = KINDS[kind]()
    tokenizer.chat_template = TEMPLATES[template]
    return tokenizer, Prompts(tokenizer)


TEXT = st.text(
    st.one_of(
        st.sampled_from(" \n\t.?<|>/[]{}%'\"aeT1#\u2581\u00a0中é"), st.characters(exclude_categories=["Cs"])
    )
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", TEMPLATES)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(question=TEXT)
def test_a_plain_prompt_is_the_stock_prompt_id_for_id(kind: str, template: str, question: str) -> None:
    tokenizer, prompts = made(kind, template)
    assume(not any(token in question for token in CONTROL))
    assert prompts.plain(question) == stock(tokenizer, question)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_texts_of_each_sort_are_the_stock_prompt(kind: str, template: str) -> None:
    tokenizer, prompts = made(kind, template)
    for question in (
        "What is it?", " leading", "trailing\n", "two\n\nlines\n  indented",
        "a\ttab  and   spaces", "émoji 🤗 日本",
        "<b>bold</b> <table><tr></h1>", "", " ", "\n\nstart", "a\r\nb", "{{ x }} {% y %}",
        "1,000 K", "\u2581\u2581 x",
    ):  # fmt: skip
        assert prompts.plain(question) == stock(tokenizer, question), question


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    parts=st.lists(
        st.one_of(st.sampled_from([*CONTROL, "<pad>", "<eos>", "<unk>", "<0x41>"]), TEXT), max_size=5
    )
)
def test_no_text_becomes_a_control_token(kind: str, parts: list[str]) -> None:
    tokenizer, prompts = made(kind, "plain")
    text, control = "".join(parts), {*tokenizer.convert_tokens_to_ids(CONTROL), tokenizer.pad_token_id}
    assert control.isdisjoint(prompts.text(text))
    assert control.isdisjoint(prompts.answer(text)[:-1])
    frame = [i for i in prompts.plain("x") if i in control]
    for ids in (
        prompts.plain(text),
        prompts.with_text("x", PromptSettings(answer=text or "x"), "y"),
        prompts.with_text(text, PromptSettings(answer="x"), text),
    ):
        assert [i for i in ids if i in control] == frame


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", ["plain", "trims", "spaced"])
def test_an_answer_goes_on_behind_its_prompt_as_the_template_writes_it(kind: str, template: str) -> None:
    tokenizer, prompts = made(kind, template)
    for answer in ("silver foam", "1,000 K", "two\nlines"):
        turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": answer}]
        whole = tokenizer.apply_chat_template(turns, return_dict=True)["input_ids"]
        ours = prompts.plain("What?") + prompts.answer(answer)[:-1]
        assert whole[: len(ours)] == ours
        assert prompts.decode(prompts.answer(answer)) == answer


@pytest.mark.parametrize("template", ["no_system", "drops_system", "alternates"])
def test_a_template_without_a_system_turn_gets_the_instruction_in_the_users(template: str) -> None:
    tokenizer, prompts = made("sentencepiece_like", template)
    assert prompts.ask_expert("What?", "Say it.") == stock(tokenizer, "Say it.\n\nWhat?")
    assert prompts.ask_expert("What?", "") == stock(tokenizer, "What?")


def test_a_system_turn_is_used_where_there_is_one() -> None:
    tokenizer, prompts = made("sentencepiece_like", "plain")
    turns = [{"role": "system", "content": "Say it."}, {"role": "user", "content": "What?"}]
    whole = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert prompts.ask_expert("What?", "Say it.") == whole


def test_what_is_trained_reads_the_same_every_day(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, prompts = made("sentencepiece_like", "dated")
    before = (
        prompts.ask_expert("q", "s"),
        prompts.with_knowledge("q", S),
        prompts.answer("a"),
    )
    today = prompts.plain("q")

    class Later(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> "Later":
            return cls(2031, 5, 6, tzinfo=tz)

    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Later)
    monkeypatch.setattr("gag.models.chat_template.datetime.date", SimpleNamespace(today=lambda: "2031-05-06"))
    assert (
        prompts.ask_expert("q", "s"),
        prompts.with_knowledge("q", S),
        prompts.answer("a"),
    ) == before
    assert prompts.plain("q") == stock(tokenizer, "q") != today
    assert "06 May 2031" in tokenizer.decode(prompts.plain("q"))


def test_words_that_open_an_answer_belong_to_the_prompt() -> None:
    tokenizer, prompts = made("byte_level", "channelled")
    assert tokenizer.decode(prompts.ask_expert("q", "s")).endswith("<|assistant|><|channel|> final")
    assert tokenizer.decode(prompts.with_knowledge("q", S).after).endswith("<|channel|> final")
    assert prompts.plain("q") == stock(tokenizer, "q")


def test_a_template_that_raises_for_some_text_still_takes_it() -> None:
    tokenizer = KINDS["sentencepiece_like"]()
    tokenizer.chat_template = "{% if 'bad' in messages[0]['content'] %}{{ 1 / 0 }}{% endif %}" + PLAIN
    prompts = Prompts(tokenizer)
    assert "bad" in prompts.decode(prompts.plain("bad words")) and prompts.plain("good") == stock(
        tokenizer, "good"
    )


@pytest.mark.parametrize(
    "fault", ["{{ raise_exception('no') }}", "{{ messages[7].content }}", "{% if %}", "{{ 1 / 0 }}"]
)
def test_a_template_that_always_raises_is_refused(fault: str) -> None:
    tokenizer = KINDS["sentencepiece_like"]()
    tokenizer.chat_template = fault
    with pytest.raises(MismatchError, match="cannot render these turns .*; use a chat model"):
        Prompts(tokenizer).plain("q")


def test_a_template_that_ends_no_turn_ends_with_the_end_of_text() -> None:
    tokenizer = KINDS["sentencepiece_like"]()
    tokenizer.chat_template = "{% for m in messages %}### {{ m['role'] }}:\n{{ m['content'] }}\n{% endfor %}"
    assert Prompts(tokenizer).answer("x")[-1] == tokenizer.eos_token_id
    tokenizer.eos_token = None
    with pytest.raises(MismatchError, match="has no eos_token; use a chat model"):
        Prompts(tokenizer).answer("x")


def test_use_does_not_change_a_tokenizers_identity() -> None:
    tokenizer = KINDS["gemma_like"]()
    before = Prompts(tokenizer).identity
    tokenizer(["one", "two and three"], padding=True, truncation=True, max_length=3)
    assert Prompts(tokenizer).identity == before


def test_a_control_token_of_single_words_counts_where_the_tokenizer_counts_it() -> None:
    tokenizer = KINDS["gemma_like"]()
    tokenizer.add_tokens([AddedToken("[Q]", special=True, single_word=True)])
    tokenizer.chat_template = PLAIN.replace("{{ m['content'] }}", "[Q]{{ m['content'] }}")
    one, two = Prompts(tokenizer), Prompts(tokenizer)
    for question in ("What is it?", "?", " x", ""):
        assert one.plain(question) == two.plain(question) == stock(tokenizer, question)
    assert one.ask_expert("q <|end|>", "[Q] s") == two.ask_expert("q <|end|>", "[Q] s")


@pytest.mark.parametrize(
    "source",
    ["{% set f = '%d %b %Y' %}{{ strftime_now(f) }}", "{{ strftime_now('%d ' + '%b %Y') }}",
     "{% set now = strftime_now %}{{ now(format='%d %b %Y') }}"],
)  # fmt: skip
@pytest.mark.parametrize("named", [False, True])
def test_any_way_to_print_the_date_stands_still(source: str, named: bool) -> None:
    tokenizer = KINDS["sentencepiece_like"]()
    tokenizer.chat_template = {"default": source + PLAIN} if named else source + PLAIN
    prompts = Prompts(tokenizer)
    assert tokenizer.decode(prompts.ask_expert("q", "s")).startswith("01 Jan 2025")
    assert prompts.plain("q") == stock(tokenizer, "q")


@pytest.mark.parametrize("source", ["", "constant", "{{ messages[0]['content'].split('\n')[1:] }}"])
def test_a_template_that_drops_what_is_said_is_refused(source: str) -> None:
    tokenizer = KINDS["sentencepiece_like"]()
    tokenizer.chat_template = source
    with pytest.raises(MismatchError, match="does not write what the user says"):
        Prompts(tokenizer).plain("q")


def test_a_template_that_repeats_what_is_said_takes_no_knowledge() -> None:
    tokenizer = KINDS["sentencepiece_like"]()
    said = "{{ m['content'] | trim }}"
    tokenizer.chat_template = PLAIN.replace("{{ m['content'] }}", f"{said} | {said}")
    prompts = Prompts(tokenizer)
    assert prompts.plain("  q ") == stock(tokenizer, "  q ")
    with pytest.raises(MismatchError, match="more than once"):
        prompts.with_knowledge("q", S)


def test_a_template_of_parts_gets_parts() -> None:
    tokenizer = KINDS["sentencepiece_like"]()
    part = "{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}{{ c['text'] }}{% endfor %}"
    tokenizer.chat_template = PLAIN.replace("{{ m['content'] }}", part)
    whole = Prompts(KINDS["sentencepiece_like"]())
    assert Prompts(tokenizer).plain("What?") == whole.plain("What?")
    assert Prompts(tokenizer).answer("tin") == whole.answer("tin")
