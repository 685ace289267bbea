"""Query encoders other than the expert backbone, and the cache of what was encoded."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerFast

from gag.errors import DataError, SettingsError
from gag.project.parsing import parse_settings
from gag.project.project import load_project
from gag.project.rows import write_rows
from gag.project.settings import EncoderSettings, RouterSettings
from gag.project.tensors import save_tensors
from gag.routing.encoders import CachedEncoder, GivenVectors, TransformerEncoder, make_encoder
from tests.conftest import TOKENIZER, write_tiny_project


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    """A random encoder whose tokenizer frames a text with control tokens."""
    from tokenizers.processors import TemplateProcessing

    folder = tmp_path_factory.mktemp("bert")
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    backend = tokenizer.backend_tokenizer
    end = tokenizer.eos_token
    backend.post_processor = TemplateProcessing(
        single=f"{end} $A {end}", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end, pad_token=end).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=32, max_position_embeddings=40, initializer_range=0.3)  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return folder


def settings(folder: Path, kind: str = "transformer", **changes) -> RouterSettings:
    encoder = EncoderSettings.model_validate({"kind": kind, "model": str(folder), **changes})
    return RouterSettings(encoder=encoder, batch_size=2)


def test_a_transformer_is_pooled_over_its_own_tokens(bert: Path) -> None:
    questions = ["What is tin?", "Which metal is added to the bed?", "Why?"]
    encoder = TransformerEncoder(settings(bert), bert)
    vectors = encoder.encode(questions)
    tokenizer, model = AutoTokenizer.from_pretrained(bert), BertModel.from_pretrained(bert).eval()
    for question, vector in zip(questions, vectors, strict=True):
        ids = torch.tensor([tokenizer(question)["input_ids"]])
        assert ids[0, 0] == ids[0, -1] == tokenizer.eos_token_id
        states = model(ids).last_hidden_state[0].detach()
        assert torch.allclose(vector, torch.nn.functional.normalize(states.mean(0), dim=0), atol=1e-5)
    first = TransformerEncoder(settings(bert, pooling="first"), bert)
    assert (
        first.spec.pooling == "first"
        and first.spec != encoder.spec
        and first.spec.fingerprint == encoder.spec.fingerprint
    )
    assert not torch.allclose(first.encode(questions), vectors, atol=1e-3)
    assert (
        encoder.spec.max_tokens == 40 and encoder.spec.width == 16
    )  # no more than the model has positions for


def test_what_a_user_types_is_no_control_token_and_may_be_long(bert: Path) -> None:
    encoder = TransformerEncoder(settings(bert), bert)
    end = AutoTokenizer.from_pretrained(bert).eos_token
    plain, framed = encoder.encode(["tin", f"tin {end}"])
    assert not torch.allclose(plain, framed, atol=1e-3)
    assert torch.isfinite(encoder.encode(["word " * 20_000])).all()


def test_vectors_from_elsewhere_are_looked_up(tmp_path: Path) -> None:
    write_rows(tmp_path / "questions.jsonl", [{"question": "a?"}, {"question": "b?"}])
    save_tensors(tmp_path / "vectors.safetensors", {"vectors": torch.tensor([[3.0, 4.0], [0.0, 2.0]])})
    encoder = GivenVectors(settings(tmp_path, "vectors", revision="model-x"), tmp_path)
    assert torch.allclose(encoder.encode(["b?", "a?"]), torch.tensor([[0.0, 1.0], [0.6, 0.8]]))
    assert encoder.spec.fingerprint == "vectors of model-x"
    with pytest.raises(DataError, match=r"1 questions have no vector.*'c\?'"):
        encoder.encode(["a?", "c?"])
    save_tensors(tmp_path / "vectors.safetensors", {"vectors": torch.ones(3, 2)})
    with pytest.raises(DataError, match=r"shape \(2, width\)"):
        GivenVectors(settings(tmp_path, "vectors"), tmp_path)


def test_the_cache_encodes_each_text_once(bert: Path, tmp_path: Path) -> None:
    encoder = TransformerEncoder(settings(bert), bert)
    first = CachedEncoder(encoder, tmp_path).encode(["a", "b", "a"])

    class Refusing:
        spec = encoder.spec

        def encode(self, questions: list[str]) -> torch.Tensor:
            assert questions == ["c"]
            return encoder.encode(questions)

    again = CachedEncoder(Refusing(), tmp_path).encode(["b", "c", "a"])
    assert torch.equal(again[[2, 0]], first[[0, 1]]) and torch.equal(first[0], first[2])
    assert CachedEncoder(Refusing(), tmp_path).encode([]).shape == (0, 16)


def test_a_project_names_its_encoder(bert: Path, tmp_path: Path) -> None:
    root = write_tiny_project(tmp_path / "p", router={"encoder": {"kind": "transformer", "model": str(bert)}})
    from gag.stages.build import build

    build(load_project(root), ["metals", "plants"])
    from gag.routing.state import load_router

    router = load_router(load_project(root))
    assert (
        router.banks[0].encoder.width == 16
        and router.route(["What is in metals number 2?"])[0].domain == "metals"
    )

    def never() -> None:
        raise AssertionError("the expert is not needed")

    assert make_encoder(load_project(root), never).spec == router.encoder.spec  # pyright: ignore
    with pytest.raises(SettingsError, match="cannot be loaded"):
        TransformerEncoder(settings(tmp_path / "nothing"), tmp_path)
    with pytest.raises(SettingsError, match="needs a model"):
        parse_settings(
            {"base": {"model": "b"}, "expert": {"model": "e"}, "router": {"encoder": {"kind": "transformer"}}}
        )
