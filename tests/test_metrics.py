"""Every quirk of the metrics that the method names, and parity with the bert-score package."""

import string
from pathlib import Path

import pytest
import torch
from hypothesis import given, strategies
from transformers import BertConfig, BertModel, BertTokenizerFast

from gag.errors import SettingsError
from gag.evaluation.bertscore import BackboneStates, BertScorer, TransformerStates, sentence_similarity
from gag.evaluation.intervals import grouped_interval, interval, paired
from gag.evaluation.metrics import contains, exact, f1, normal
from gag.models.plain_text import plain_tokenizer
from gag.project.words import tokens
from gag.routing.encoders import text_frame

WORDS = [
    *"abcdefghijklmnopqrstuvwxyz",
    "##a",
    "##b",
    "##c",
    "vaccine",
    "adjuvant",
    "the",
    "holds",
    "dose",
    "of",
    "in",
]


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    BertTokenizerFast(vocab=vocabulary, model_max_length=512).save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=len(vocabulary), initializer_range=0.3, **shape)
    BertModel(config).save_pretrained(folder)
    return folder


def test_contains_is_about_whole_tokens_in_a_row() -> None:
    assert contains("It is the Pearl foam, of course.", ("pearl foam",))
    assert not contains("pearls foam", ("pearl foam",)) and not contains("pearl of foam", ("pearl foam",))
    assert contains("5%", ("5%",)) and not contains("5", ("5%",))
    assert contains("cafe\u0301 au lait", ("café",)) and tokens("naïve-x") == tokens(
        "naI\u0308ve - X".lower()
    )


def test_empties_never_match_and_any_alias_counts() -> None:
    assert not contains("anything", ("", "  ")) and not contains("", ("x",)) and not contains("x", ())
    assert not exact("", ("",)) and not exact("the", ("a",)) and f1("", ("",)) == 0 == f1("x", ())
    assert (
        contains("b", ("a", "b")) and exact("b", ("", "b")) and f1("b c", ("x", "b")) == pytest.approx(2 / 3)
    )


def test_squad_form_drops_case_articles_and_punctuation() -> None:
    assert normal(" The  Cat, sat; on an x-ray! ") == "cat sat on xray"
    assert exact("the cat.", ("A Cat",)) and not exact("cat sat", ("cat",))
    assert f1("cat cat sat", ("cat sat sat",)) == pytest.approx(2 * 2 / 6)


@given(strategies.text(alphabet=string.printable, max_size=40))
def test_an_answer_matches_itself(text: str) -> None:
    assert contains(f"so: {text} !", (text,)) == bool(tokens(text))
    assert exact(text, (text,)) == bool(normal(text)) and (f1(text, (text,)) == 1) == bool(normal(text))


@pytest.mark.filterwarnings("ignore")
def test_bertscore_equals_the_package(bert: Path) -> None:
    from bert_score import BERTScorer  # pyright: ignore[reportMissingImports]

    said = ["the vaccine holds a dose", "adjuvant", "a b c d e f g", "in the dose of"]
    gold = ["a dose of the vaccine", "the adjuvant of b", "g f e d", "adjuvant holds x y z ab"]
    wanted = BERTScorer(model_type=str(bert), num_layers=2).score(said, gold)[2].tolist()
    ours = BertScorer(TransformerStates(str(bert), 2, bert, "cpu")).score(said, [(g,) for g in gold])
    assert ours == pytest.approx(wanted, abs=1e-4)


def test_bertscore_takes_empties_aliases_and_long_texts(bert: Path) -> None:
    scorer = BertScorer(TransformerStates(str(bert), 2, bert, "cpu"))
    assert scorer.score(["", "a", "a", " "], [("a",), ("",), (), ("",)]) == [0, 0, 0, 0]
    one, other, best = scorer.score(["a b"] * 3, [("x y",), ("b a",), ("x y", "b a")])
    assert best == max(one, other)
    assert scorer.score(["dose"], [("dose",)])[0] == pytest.approx(1, abs=1e-5)
    long, short = "a b c d " * 200, "x y z"
    pieces = TransformerStates(str(bert), 2, bert, "cpu").pieces([long])[0]
    assert [int(p.counted.sum()) for p in pieces] == [500, 300]
    parts = [" ".join(long.split()[:500]), " ".join(long.split()[500:])]
    first, second = scorer.score([short, short], [(parts[0],), (parts[1],)])
    whole = scorer.score([short], [(long,)])[0]
    assert whole == pytest.approx((first * 251.5 + second * 151.5) / 403, abs=1e-5)


def test_the_frame_of_a_text_is_found_or_refused(bert: Path) -> None:
    tokenizer = BertTokenizerFast.from_pretrained(bert)
    plain = plain_tokenizer(tokenizer)
    assert text_frame(tokenizer, plain) == ([tokenizer.cls_token_id], [tokenizer.sep_token_id])

    class Upside:
        name_or_path = "upside-down"

        def __call__(self, text: str) -> dict:
            return {"input_ids": [-1, *plain.encode("the", add_special_tokens=False).ids]}

    with pytest.raises(SettingsError, match="tokenizer of upside-down"):
        text_frame(Upside(), plain)


def test_a_backbone_stands_in_for_an_encoder(expert) -> None:
    scorer = BertScorer(BackboneStates(expert))
    same, other, empty = scorer.score(
        ["What is tin?", "What is tin?", ""], [("What is tin?",), ("Why?",), ("x",)]
    )
    assert same == pytest.approx(1, abs=1e-5) and other < 0.99 and empty == 0


def test_similarity_of_sentences() -> None:
    class Letters:
        def encode(self, texts: list[str]) -> torch.Tensor:
            assert len(set(texts)) == len(texts)
            counts = torch.tensor([[float(text.count(c)) for c in "abc"] for text in texts])
            return torch.nn.functional.normalize(counts, dim=-1)

    assert sentence_similarity(
        Letters(), ["ab", "ab", "", "c"], [("ba", "c"), ("c",), ("a",), ()]
    ) == pytest.approx([1, 0, 0, 0])
    assert sentence_similarity(Letters(), [""], [("",)]) == [0]


def test_intervals_hold_the_mean_and_shrink_with_more_values() -> None:
    few, many = [0.0, 1.0] * 10, [0.0, 1.0] * 1000
    assert interval(few)[0] < 0.5 < interval(few)[1]
    assert interval(many)[1] - interval(many)[0] < (interval(few)[1] - interval(few)[0]) / 3
    assert interval(few) == interval(few) and interval([1.0] * 5) == (1, 1)
    lead = paired([1.0] * 40, [0.0, 1.0] * 20)
    assert lead.mean == 0.5 and lead.interval.low > 0 and lead.interval.high < 1
    assert paired(few, few).interval == (0, 0)
    assert grouped_interval([[1.0] * 9, [0.0] * 3, []]) == (0.5, 0.5)
