"""From a question to an answer: batches mix routes, general is the stock base, no domain changes nothing."""

import re
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from gag.engine.answer import Answer
from gag.engine.domains import verify_domains
from gag.engine.engine import GAG, ProjectGAG
from gag.errors import ArtifactError, DataError, MismatchError, RoutingError, SettingsError
from gag.evaluation.general import evaluate_general
from gag.models.backbone import weights_hash
from gag.models.experts import Experts
from gag.models.language_model import Request, generate
from gag.models.loading import load_backbone
from gag.project.project import Project, load_project
from gag.project.rows import Example
from gag.project.settings import GENERAL, PromptSettings
from gag.projection.injection import inject
from gag.routing.state import load_router
from tests.conftest import make_model

QUESTIONS = [
    "What is in metals number 2?",
    "What is 3 plus 3?",
    "Which one is in plants number 5?",
    "Why not?",
    "What is in plants number 1?",
]


@pytest.fixture(scope="module")
def gag(built) -> ProjectGAG:
    return GAG.open(load_project(built))


def written(answer: Answer) -> str | None:
    return answer.knowledge.text if answer.knowledge else None


def test_a_mixed_batch_is_one_by_one(gag: ProjectGAG) -> None:
    together = gag.ask(QUESTIONS)
    assert {answer.route.domain for answer in together} >= {"metals", "plants"}
    for question, answer in zip(QUESTIONS, together, strict=True):
        alone = gag.ask([question])[0]
        assert alone.text == answer.text and written(alone) == written(answer)
        assert (alone.finish, alone.prompt_tokens) == (answer.finish, answer.prompt_tokens)
        assert alone.route.domain == answer.route.domain
        assert alone.route.score == pytest.approx(answer.route.score, abs=1e-5)
        assert answer.tokens_added == (0 if answer.route.domain == GENERAL else 1)


def test_a_forced_domain_skips_the_router(gag: ProjectGAG) -> None:
    answer = gag.ask(["What is 3 plus 3?"], "plants")[0]
    assert answer.route.domain == "plants" and answer.tokens_added == 1
    assert gag.ask(QUESTIONS[:1], GENERAL)[0].knowledge is None
    with pytest.raises(RoutingError, match="metals, plants"):
        gag.ask(["x"], "woods")
    with pytest.raises(DataError, match="empty"):
        gag.ask(["x", " \n"])


def test_one_vector_stands_where_the_knowledge_was(gag: ProjectGAG) -> None:
    known = gag.read(QUESTIONS[:1], "metals")[0]
    prompt = gag.base.prompts.with_knowledge(QUESTIONS[0], PromptSettings(answer="Tell."))
    row = gag.prompt(QUESTIONS[0], "metals", known)
    assert known.vectors.shape == (1, gag.base.width)
    assert torch.equal(row[len(prompt.before)], known.vectors[0])
    assert torch.equal(row[: len(prompt.before)], gag.base.embed(prompt.before))
    assert torch.equal(row[len(prompt.before) + 1 :], gag.base.embed(prompt.after))


def test_a_tokens_own_embedding_is_the_token(gag: ProjectGAG) -> None:
    prompt = gag.base.prompts.with_knowledge("Why?", PromptSettings(answer="Tell."))
    ids = gag.base.prompts.text("copper")
    assert torch.equal(
        inject(gag.base, prompt, gag.base.embed(ids)), gag.base.embed(prompt.before + ids + prompt.after)
    )


def test_generation_from_embeddings_is_generation_from_ids(gag: ProjectGAG) -> None:
    ids = gag.base.prompts.plain("What is tin?")
    written = gag.base.model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=6)[
        0, len(ids) :
    ].tolist()
    ours = generate(gag.base, [Request(gag.base.embed(ids), 6)])[0].ids
    assert written[: len(ours)] == ours


def test_the_general_route_is_the_stock_base(gag: ProjectGAG) -> None:
    rows = [Example(str(i), f"What is {i} plus {i}?", ("a",), str(i)) for i in range(6)]
    figures = evaluate_general(gag, rows, gag.project.settings.base)
    assert figures.identical is True
    assert figures.misrouted == 0


def test_identity_notices_a_changed_base(project: Project) -> None:
    gag = GAG.open(project)
    with torch.no_grad():
        gag.base.model.get_input_embeddings().weight[5, 0] += 1e-3
    rows = [Example("0", "What is 1 plus 1?", ("a",), "0")]
    assert evaluate_general(gag, rows, project.settings.base).identical is False


def test_the_base_is_not_changed_by_answering(gag: ProjectGAG) -> None:
    stock = AutoModelForCausalLM.from_pretrained(gag.project.root / "models" / "base", dtype=torch.float32)
    gag.ask(QUESTIONS)
    assert weights_hash(gag.base.model) == weights_hash(stock)


def test_adapters_off_is_the_backbone(gag: ProjectGAG) -> None:
    folder = gag.project.root / "models" / "expert"
    stock = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([AutoTokenizer.from_pretrained(folder)("What is tin?")["input_ids"]])
    with torch.no_grad():
        plain = stock(ids).logits
        assert torch.equal(gag.experts.backbone.model(ids).logits, plain)
        with gag.experts.using(gag.domains.module("metals").expert) as expert:
            tuned = expert.model(ids).logits
        with gag.experts.using(gag.domains.module("plants").expert) as expert:
            other = expert.model(ids).logits
        assert torch.equal(gag.experts.backbone.model(ids).logits, plain)
    assert not torch.allclose(tuned, plain) and not torch.allclose(tuned, other)


def test_without_domains_everything_is_general(project: Project) -> None:
    full = GAG.open(project).ask(QUESTIONS, GENERAL)
    shutil.rmtree(project.domains)
    bare = GAG.open(project).ask(QUESTIONS)
    assert [answer.route.domain for answer in bare] == [GENERAL] * len(QUESTIONS)
    assert [answer.text for answer in bare] == [answer.text for answer in full]


def test_the_light_router_is_the_engines(gag: ProjectGAG) -> None:
    light = load_router(gag.project)
    assert light.route(QUESTIONS) == gag.route(QUESTIONS)
    assert [light.scores(question) for question in QUESTIONS] == [
        gag.router.scores(question) for question in QUESTIONS
    ]


def test_another_base_is_refused_domain_by_domain(project: Project) -> None:
    make_model(project.root / "models" / "base", 32, seed=5)
    gag = GAG.open(project)
    assert set(gag.domains.refused) == {"metals", "plants"} and gag.domains.names == []
    assert "built for the base models/base with fingerprint" in gag.domains.refused["metals"]
    with pytest.raises(ArtifactError, match="domain metals is refused: metals was built for the base"):
        gag.ask(QUESTIONS[0], "metals")
    make_model(project.root / "models" / "base", 40, seed=0)
    assert re.search("base of width 32 .* has 40", GAG.open(project).domains.refused["plants"])
    with pytest.raises(MismatchError, match=r"built for a base of width 32 \(models/base\)"):
        verify_domains(project, [])


def test_another_expert_is_refused(project: Project) -> None:
    make_model(project.root / "models" / "expert", 24, seed=5)
    with pytest.raises(MismatchError, match="the bank of general was made by another query encoder"):
        GAG.open(project)
    with pytest.raises(MismatchError, match="built for the expert"):
        verify_domains(project, ["metals"])


@pytest.mark.parametrize(
    "name", ["projector.safetensors", "bank.safetensors", "expert/adapter_model.safetensors", "README.md"]
)
def test_an_edited_domain_is_refused_by_name_and_the_others_answer(project: Project, name: str) -> None:
    whole = GAG.open(project).ask(QUESTIONS)
    file = project.domain("metals") / name
    file.write_bytes(file.read_bytes()[:-3] + b"abc")
    gag = GAG.open(project)
    with pytest.raises(ArtifactError, match="edited or cut short"):
        gag.ask(QUESTIONS[0], "metals")
    assert set(gag.domains.refused) == {"metals"} and gag.domains.names == ["plants"]
    kept = [answer for answer in whole if answer.route.domain != "metals"]
    assert [gag.ask(answer.question, answer.route.domain).text for answer in kept] == [a.text for a in kept]
    answers = {answer.question: answer for answer in gag.ask(QUESTIONS)}
    if (
        name != "bank.safetensors"
    ):  # its bank still says whose questions these are, so they are refused, not misled
        refused = [a.question for a in whole if a.route.domain == "metals"]
        assert [q for q, a in answers.items() if a.finish == "refused"] == refused != []
        assert all(name in answers[question].refusal and not answers[question].text for question in refused)
        with pytest.raises(RoutingError, match="edited or cut short"):
            gag.ask(refused[0])
    assert all(answers[a.question].text == a.text for a in kept if a.route.domain == "plants")


def test_a_fully_tuned_expert_is_a_model_of_its_own(project: Project) -> None:
    from gag.stages.build import build

    full = load_project(project.root, ("adapt.tuning=full", "adapt.learning_rate=0.001"))
    build(full, ["metals"])
    gag = GAG.open(full)
    assert not (project.domain("metals") / "expert" / "adapter_config.json").exists()
    assert gag.domains.facts("metals").tuning == "full" and gag.domains.facts("plants").tuning == "lora"
    answers = gag.ask(QUESTIONS)
    assert [a.text for a in answers] == [gag.ask([q])[0].text for q in QUESTIONS]


def test_what_cannot_be_loaded_is_said_in_one_line(project: Project) -> None:
    file = project.root / "models" / "base" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(SettingsError, match="models/base cannot be loaded"):
        GAG.open(project)
    if not torch.cuda.is_available():
        with pytest.raises(SettingsError, match="models/expert cannot be loaded.* a device that is here"):
            load_router(load_project(project.root, ("expert.device=cuda",)))


def test_a_changed_tokenizer_is_another_model(project: Project) -> None:
    before = load_backbone(project.settings.base, project.root).fingerprint
    template = project.root / "models" / "base" / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|end|>", "<|end|>\n"))
    assert load_backbone(project.settings.base, project.root).fingerprint != before


def test_a_domain_with_another_encoder_limit_is_refused(project: Project) -> None:
    with pytest.raises(
        MismatchError, match=r"max_tokens 256, expected 9.*run `gag (build|prototypes) .*set `router`"
    ):
        verify_domains(load_project(project.root, ("router.max_tokens=9",)), [])


@given(st.text().filter(str.strip), st.text().filter(str.strip), st.integers(1, 5))
def test_injection_keeps_every_token_in_place(gag: GAG, question: str, instruction: str, slots: int) -> None:
    prompt = gag.base.prompts.with_knowledge(question, PromptSettings(answer=instruction))
    vectors = torch.randn(slots, gag.base.width)
    row = inject(gag.base, prompt, vectors)
    cut = len(prompt.before)
    assert torch.equal(row[cut : cut + slots], vectors)
    assert torch.equal(
        torch.cat([row[:cut], row[cut + slots :]]), gag.base.embed(prompt.before + prompt.after)
    )


def test_an_adapter_of_another_shape_is_refused(project: Project, tmp_path) -> None:
    settings = project.settings.expert.model_copy(update={"model": str(make_model(tmp_path / "w", 48, 0))})
    wider = load_backbone(settings, tmp_path)
    with pytest.raises(ArtifactError, match="does not fit the expert backbone"):
        Experts(wider).load("metals", project.domain("metals") / "expert")
