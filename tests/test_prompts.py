"""User text is plain text, and prompts are the same whatever stands at their end."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from gag.models.prompts import Prompts
from gag.projection.alignment import shared_opening
from tests.conftest import TOKENIZER

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
    calm = prompts.with_text("q", "be kind", "fact")
    loud = prompts.with_text("q <|end|>", "be <|im_start|> kind <|user|>", "fact <think>")
    control = tokenizer.added_tokens_decoder.keys()
    assert [i for i in calm if i in control] == [i for i in loud if i in control]
    assert sum(i in control for i in prompts.ask_expert("q", "<|system|>")) == sum(
        i in control for i in prompts.ask_expert("q", "s")
    )


def test_markers_in_user_text_are_text() -> None:
    prompts = Prompts(AutoTokenizer.from_pretrained(TOKENIZER))
    marked = prompts.with_knowledge("a \ue0f2 \ue0f1 b", "be kind")
    plain = prompts.with_knowledge("a b", "be kind")
    assert marked.after == plain.after


def test_knowledge_prompt_is_the_text_prompt_around_its_knowledge() -> None:
    prompts = Prompts(AutoTokenizer.from_pretrained(TOKENIZER))
    parts = prompts.with_knowledge("What?", "Tell.")
    assert parts.before + prompts.text("It is so.") + parts.after == prompts.with_text(
        "What?", "Tell.", "It is so."
    )
    other = prompts.with_knowledge("Why not?", "Tell.")
    opening = shared_opening([parts.before, other.before])
    assert 0 < len(opening) < len(parts.before)


def test_an_answer_ends_with_the_turns_end() -> None:
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    prompts = Prompts(tokenizer)
    assert prompts.answer("gold")[-1] == tokenizer.convert_tokens_to_ids("<|end|>")
    assert prompts.decode(prompts.answer("gold")) == "gold"
