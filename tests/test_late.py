"""Late interaction: the index of 2 bits against whole states, and ColBERT checkpoints of random weights."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import MultiVectorEncoder
from transformers import BertConfig, BertModel, BertTokenizerFast

from gag.errors import SettingsError
from gag.evaluation import token_index
from gag.evaluation.colbert import ColBERT
from gag.evaluation.retrieval import late_interaction
from gag.evaluation.token_index import TokenIndex
from gag.project.rows import Passage

WORDS = ["fern", "tin", "metal", "grows", "a", "is", "what", "[", "]", "q", "sep", "unused0"]
STANFORD = ["[unused0]", "[unused1]"]


def checkpoint(folder: Path) -> Path:
    """Write a ColBERT checkpoint as sentence-transformers saves it; its encoder lies in `bert` beside it."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *STANFORD, *WORDS]
    vocabulary = {name: i for i, name in enumerate(names)}
    bert = folder.parent / "bert"
    BertTokenizerFast(vocab=vocabulary, model_max_length=64).save_pretrained(bert)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(names), initializer_range=0.3, **shape)).save_pretrained(bert)
    MultiVectorEncoder(str(bert), device="cpu").save_pretrained(str(folder))  # a random projection on top
    return folder


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("colbert") / "own")


@pytest.fixture(scope="module")
def stanford(own: Path) -> Path:
    """A checkpoint as the original's authors save it: the projection beside the encoder's own weights."""
    folder, bert = own.with_name("stanford"), own.with_name("bert")
    folder.mkdir()
    for file in bert.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((bert / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["HF_ColBERT"]}))
    weights = {f"bert.{name}": tensor for name, tensor in load_file(bert / "model.safetensors").items()}
    weights["linear.weight"] = torch.randn(16, 32, generator=torch.Generator().manual_seed(1))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "artifact.metadata").write_text(json.dumps({"query_maxlen": 8, "doc_maxlen": 20}))
    return folder


def test_any_checkpoint_is_read_as_its_library_reads_it(own: Path, stanford: Path) -> None:
    for folder, width in ((own, 128), (stanford, 16)):
        ours, theirs = ColBERT(folder.name, folder.parent), MultiVectorEncoder(str(folder), device="cpu")
        asked, said = ["what is tin"], ["tin is a metal", "a fern grows"]
        for mine, expected in (
            (ours.questions(asked), theirs.encode_query(asked)),
            (ours.passages(said), theirs.encode_document(said)),
        ):
            for one, other in zip(mine, expected, strict=True):
                assert one.shape[1] == width and torch.allclose(one, other.cpu(), atol=1e-6)
                assert torch.allclose(one.norm(dim=1), torch.ones(len(one)), atol=1e-5)
    assert len(ColBERT("stanford", stanford.parent).questions(["tin"])[0]) == 8  # filled up by [MASK]


def test_a_typed_control_token_is_text(stanford: Path) -> None:
    model = ColBERT("stanford", stanford.parent)
    typed, apart = model.passages(["fern [SEP] tin [unused0]", "fern [ SEP] tin [ unused0]"])
    assert torch.equal(typed, apart)


def test_a_folder_without_weights_is_one_line(own: Path) -> None:
    (own.parent / "half").mkdir()
    (own.parent / "half" / "config.json").write_bytes(
        own.with_name("bert").joinpath("config.json").read_bytes()
    )
    with pytest.raises(
        SettingsError, match=r"evaluation\.colbert half cannot be loaded: .*name a whole folder"
    ):
        ColBERT("half", own.parent)


def test_an_encoder_without_a_projection_is_no_colbert(own: Path) -> None:
    with pytest.raises(SettingsError, match="bert is no ColBERT checkpoint"):
        ColBERT("bert", own.parent)


def _made(number: int, tokens: int, width: int = 32) -> torch.Tensor:
    drawn = torch.Generator().manual_seed(number)
    return torch.nn.functional.normalize(torch.randn(tokens, width, generator=drawn), dim=1)


@pytest.mark.parametrize("width", [32, 30])
def test_the_index_ranks_as_whole_states_do_in_a_sixteenth_of_their_bytes(width: int) -> None:
    states = {str(i): _made(i, 5 + i % 40, width) for i in range(300)}
    index = TokenIndex(list(states), lambda texts: [states[text] for text in texts])
    kept = sum(len(one) for one in states.values())
    assert index._left.nbytes == kept * -(-width // 4)
    assert index.bytes == kept * (-(-width // 4) + 2 + 4) + len(index._centres) * (4 * width + 8) + 8 * 302
    for number in (0, 7, 299):
        question = torch.nn.functional.normalize(states[str(number)][:4] + 0.05 * _made(999, 4, width), dim=1)
        plain = torch.stack([(one @ question.T).amax(0).sum() for one in states.values()])
        found = index.search(question, 300)
        assert found[0] == number == plain.argmax() and sorted(found) == list(range(300))
        assert len(set(found[:20]) & set(plain.topk(20).indices.tolist())) >= 12


def test_of_many_passages_only_those_that_may_be_best_are_compared(monkeypatch) -> None:
    states = {str(i): _made(i, 6) for i in range(400)}

    def encode(texts: list[str]) -> list[torch.Tensor]:
        return [states[text] for text in texts]

    whole = TokenIndex(list(states), encode)
    asked = [
        torch.nn.functional.normalize(states[str(i)] + 0.1 * _made(i + 500, 6), dim=1) for i in range(50)
    ]
    expected = [whole.search(question, 1) for question in asked]
    monkeypatch.setattr(token_index, "CANDIDATES", 40)
    assert [whole.search(question, 1) for question in asked] == expected
    assert len(whole.search(asked[0], 30)) == 30 and len(whole.search(asked[0], 300)) == 300


def test_passages_alike_or_empty_do_no_harm() -> None:
    alike = _made(1, 3)
    texts = ["same"] * 20 + ["", "other"]
    states = {"same": alike, "": torch.empty(0, 32), "other": _made(2, 3)}
    index = TokenIndex(texts, lambda block: [states[text] for text in block])
    assert index.search(states["other"], 1) == [21] and index.search(alike, 30)[-1] == 20


def test_retrieval_takes_a_checkpoint(own: Path) -> None:
    passages = [Passage("t", "tin is a metal"), Passage("f", "a fern grows")]
    search, taken = late_interaction(passages, ColBERT("own", own.parent))
    assert sorted(search(["what is a fern"], 2)[0]) == [0, 1] and taken > 0
