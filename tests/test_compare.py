"""`gag compare` on a tiny project: every method, honest costs, the page; retrieval and baselines alone."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gag.engine.engine import GAG
from gag.evaluation.bertscore import BackboneStates
from gag.evaluation.compare import run_comparison
from gag.evaluation.comparison import Comparison, MethodFigures, Provenance, SliceFigures
from gag.evaluation.costs import STAGES, Resident, build_cost
from gag.evaluation.intervals import Estimate, Interval
from gag.evaluation.methods import METHODS, retrieval_named
from gag.evaluation.report import best_retrieval, slice_verdicts, verdict
from gag.evaluation.retrieval import PlainStates, bm25, dense, late_interaction, rewritten
from gag.evaluation.tuned import prefix_rows, train_prefix, tune_base, tuned_base
from gag.project.domain import ModelFacts
from gag.project.hyperparameters import ReadoutSettings
from gag.project.memory import peak_bytes
from gag.project.project import Project, load_project
from gag.project.rows import Passage
from gag.project.settings import DecodingSettings, PromptSettings
from tests.test_cli import run
from tests.test_late import checkpoint

OWN = ("evaluation.bertscore=expert", "evaluation.similarity=expert", "evaluation.metrics={'*': [contains]}")
RICH = "{rich: {readout: {layers: [-1, 1], slots: 2}, align: {projector: gated_residual}}}"
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--enable-logging=stderr",
]
PASSAGES = [
    Passage("tin", "What is tin? It is a metal."),
    Passage("fern", "Kreluvax grows as a fern."),
    Passage("sum", "1 plus 1"),
]


@pytest.fixture(scope="module")
def compared(built: Path, tmp_path_factory) -> tuple[Project, dict]:
    root = tmp_path_factory.mktemp("compare") / "copy"
    shutil.copytree(built, root)
    checkpoint(root / "colbert")
    project = load_project(
        root,
        (
            *OWN,
            "evaluation.colbert=colbert",
            "general.test=data/general-test.jsonl",
            f"evaluation.variants={RICH}",
        ),
    )
    (root / "data" / "general-test.jsonl").write_text('{"question": "What is 3 plus 3?", "answer": "6"}\n')
    for peak, stage in enumerate(STAGES, 5):
        record(project.run("metals", stage), peak_bytes=peak * 10**6)
    found, _ = run_comparison(project, "metals", [*METHODS, "rich"], quick=True)
    return project, json.loads(json.dumps(found.as_json()))


def record(folder: Path, **facts: object) -> None:
    """Write facts into a folder's manifest, or take those that are None out of it."""
    path = folder / "manifest.json"
    content = json.loads(path.read_text()) | facts
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def test_every_method_is_measured(compared) -> None:
    _, result = compared
    kinds = {name.split("-")[0] for name in result["methods"]}
    assert kinds == {*METHODS, "rich"}
    for figures in result["methods"].values():
        low, high = figures["interval"]
        assert 0 <= low <= figures["quality"] <= high <= 1
        assert figures["first_token_ms"] > 0 and (figures["per_token_ms"] or 0) >= 0
    methods = result["methods"]
    assert (
        methods["base"]["tokens_added"] == 0
        and methods["gag"]["tokens_added"] == 1 == methods["other"]["tokens_added"]
    )
    assert methods["rich"]["tokens_added"] == 2 and methods["rich"]["disk_mb"] > 0
    assert methods["lora"]["build_mb"] > 1 and methods["prefix"]["build_mb"] > 1
    assert methods["gag"]["build_mb"] == methods["text"]["build_mb"] == 7  # of its heaviest stage
    assert methods["base"]["build_mb"] == 0 and methods["bm25-1"]["build_mb"] is None
    assert (
        methods["prefix"]["tokens_added"] == 16
        and methods["bm25-3"]["tokens_added"] > methods["bm25-1"]["tokens_added"]
    )
    assert (
        0 <= methods["bm25-1"]["in_context"] <= methods["bm25-3"]["in_context"] <= 1
        and methods["gag"]["in_context"] is None
    )
    assert methods["lora"]["build_seconds"] > 0 and methods["lora"]["disk_mb"] > 0
    assert methods["shuffled"]["general"] is None and methods["lora"]["general"] is not None
    assert "gag_leads_by" not in methods["gag"] and methods["base"]["gag_leads_by"]["mean"] == pytest.approx(
        methods["gag"]["quality"] - methods["base"]["quality"], abs=1e-3)  # fmt: skip
    assert result["slices"]["facts that alignment saw"]["questions"] == 10 and result["questions"] == 4
    assert len(result["memory"]["mb"]["GAG: base, one expert, a module each"]) == 7


def test_the_base_is_what_it_was(compared) -> None:
    project, result = compared
    answers = [
        json.loads(line)
        for line in (project.run("metals", "compare") / "answers.jsonl").read_text().splitlines()
    ]
    assert len(answers) == result["questions"] + 10  # and those that alignment saw, for their slice alone
    again = GAG.open(project).ask([answers[0]["question"]], "general")[0].text
    assert answers[0]["base"] == again


def test_a_comparison_goes_on_with_the_answers_that_stand(compared, monkeypatch: pytest.MonkeyPatch) -> None:
    project, first = compared
    rich = project.run("metals", "compare") / "gag-rich"
    assert (rich / "align").is_dir() and not (rich / "adapt").exists()
    kept = project.run("metals", "compare") / "methods"
    (kept / "base.json").write_text('{"key": "of other questions"}')
    (kept / "text.json").write_bytes((kept / "text.json").read_bytes()[:40])  # cut
    asked = []
    monkeypatch.setattr(
        "gag.evaluation.method_answers._speed",
        lambda gag, method, texts: asked.append(method.name) or (1.0, None),
    )
    again, _ = run_comparison(project, "metals", ["base", "gag", "text", "rich"], quick=True)
    assert asked == ["base", "text"]
    for name in ("base", "gag", "rich"):
        assert again.methods[name].quality == first["methods"][name]["quality"]
    changed = Project(
        project.root, project.settings.model_copy(update={"decoding": DecodingSettings(max_new_tokens=2)})
    )
    run_comparison(changed, "metals", ["zero"], quick=True)
    assert asked == ["base", "text", "zero"]


def test_a_variant_may_not_take_a_methods_name(project: Project, capsys, monkeypatch) -> None:
    at = ("--project", str(project.root), "--set", "evaluation.variants={lora: {}}")
    code, _, err = run(capsys, monkeypatch, "compare", "metals", *at)
    assert code == 2 and "evaluation.variants has 'lora'" in err
    at = ("--project", str(project.root), "--set", "evaluation.variants={new: {readout: {slotz: 2}}}")
    code, _, err = run(capsys, monkeypatch, "compare", "metals", "--methods", "base,new", *at)
    assert code == 2 and "did you mean slots" in err


def test_the_page_shows_in_a_browser(compared) -> None:
    project, _ = compared
    page = project.run("metals", "compare") / "report.html"
    text = page.read_text()
    assert text.count("<svg") == 3 and "<script" not in text and "Where each method wins" in text
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no browser here")
    for width in (390, 1280):
        own = [f"--window-size={width},900", f"--user-data-dir={page.parent / f'profile-{width}'}"]
        shown = subprocess.run(
            [browser, *FLAGS, *own, "--dump-dom", page.as_uri()],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert shown.stdout.count("<svg") == 3 and shown.stdout.count("<figcaption") == 3
        assert "CONSOLE" not in shown.stderr


def figures(quality: float, tokens: float, label: str, lead: Estimate | None = None) -> MethodFigures:
    return MethodFigures(
        label=label,
        quality=quality,
        interval=Interval(0, 1),
        in_context=None,
        tokens_added=tokens,
        general=None,
        general_forced=None,
        build_seconds=None,
        build_mb=None,
        disk_mb=None,
        first_token_ms=1,
        per_token_ms=None,
        gag_leads_by=lead,
    )


def comparison(lead: Estimate) -> Comparison:
    methods = {
        "gag": figures(0.8, 1, "GAG"),
        "base": figures(0.1, 0, "base"),
        "zero": figures(0.1, 1, "zero", lead),
        "bm25-1": figures(0.5, 9, "BM25 top 1"),
        "bm25-9": figures(0.9, 80, "BM25 top 9"),
    }
    hard = SliceFigures(5, {"gag": 0.8, "bm25-1": 0.2, "bm25-9": 0.1}, {"bm25-1": 0.6})
    model = ModelFacts(model="m", revision=None, fingerprint="f", width=8, known=())
    facts = Provenance(
        model, model, ReadoutSettings(), "mlp", {}, "today", DecodingSettings(), 9, "expert", None
    )
    return Comparison(
        domain="metals",
        metric="contains",
        questions=9,
        quick=True,
        methods=methods,
        slices={"hard": hard},
        worst=[],
        memory=Resident([1], {}),
        facts=facts,
        seconds=0,
    )


def test_the_verdict_says_who_wins() -> None:
    found = comparison(Estimate(0.7, Interval(0.6, 0.8)))
    assert best_retrieval({name: m.quality for name, m in found.methods.items()}) == "bm25-9"
    assert best_retrieval(found.slices["hard"].quality) == "bm25-1"
    said = verdict(found)
    assert "With 1 added token, GAG scores 0.80" in said and "(BM25 top 9) 0.90 with 80 tokens" in said
    assert "The vector carries knowledge" in said
    assert slice_verdicts(found) == [
        "hard: the vector wins (GAG 0.80, BM25 top 1 0.20, whose passages hold 0.60 of the answers)."
    ]
    unsure = comparison(Estimate(0.7, Interval(-0.1, 0.2)))
    assert "not shown that the vector carries knowledge" in verdict(unsure)


def test_a_cost_that_was_not_recorded_is_not_made_up(project: Project) -> None:
    for peak, stage in zip((5, 9, 7), STAGES, strict=True):
        record(project.run("metals", stage), peak_bytes=peak)
    cost = build_cost(project, "metals", 3)
    assert cost.peak_bytes == 9 and cost.disk_bytes == 3 and cost.seconds is not None
    record(project.run("metals", "readouts/align"), peak_bytes=None)
    assert build_cost(project, "metals", 3).peak_bytes is None
    shutil.rmtree(project.run("metals", "align"))
    assert build_cost(project, "metals", 3).seconds is None


def test_a_process_has_a_peak_of_memory() -> None:
    before = peak_bytes()
    held = bytearray(before)
    held[::4096] = b"x" * len(held[::4096])  # touched, so resident
    assert 2**24 < before < peak_bytes()


def test_a_variant_keeps_the_settings_that_it_does_not_change(tmp_path: Path) -> None:
    """Integer defaults stay integers, or the stages that a variant shares would have other keys."""
    content = {name: {"model": name} for name in ("base", "expert")}
    variants = {"rich": {"readout": {"slots": 2, "pooling": "norm"}}}
    (tmp_path / "gag.yaml").write_text(json.dumps(content | {"evaluation": {"variants": variants}}))
    project = load_project(tmp_path)
    variant = project.under("rich")
    assert variant.settings.readout.slots == 2
    for name in ("adapt", "pretrain"):
        ours, theirs = (getattr(p.settings, name) for p in (project, variant))
        assert ours == theirs and json.dumps(ours.model_dump()) == json.dumps(theirs.model_dump())


def test_retrieval_finds_what_shares_words_or_states(expert) -> None:
    assert bm25(PASSAGES)(["a fern named Kreluvax?"], 2)[0][0] == 1
    chain = [
        Passage("a", "Debo is also called Mila."),
        Passage("b", "The carrier of Debo is foam."),
        Passage("c", "Nothing else."),
    ]
    assert rewritten(chain)(["Which medium holds Mila?"], 2) == [[0, 1]]

    class Letters:
        spec = None

        def encode(self, texts: list[str]) -> torch.Tensor:
            return torch.nn.functional.normalize(
                torch.tensor([[float(t.count(c)) for c in "tinfersum1"] for t in texts]), dim=-1
            )

    assert dense(PASSAGES, Letters())(["1 plus 1", "fern"], 1) == [[2], [1]]  # pyright: ignore
    late, taken = late_interaction(PASSAGES, PlainStates(BackboneStates(expert)))
    assert taken < 4 * sum(len(expert.prompts.text(p.text)) for p in PASSAGES) * expert.width
    assert late(["What is tin?"], 3)[0][0] == 0 and len(late(["x"], 9)[0]) == 3


def test_baselines_are_trained_once_and_the_prefix_learns(compared) -> None:
    project, _ = compared
    base = GAG.open(project).base
    built = train_prefix(project, "metals", base, quick=True)
    assert built == train_prefix(project, "metals", base, quick=True) and set(built.chosen_by) == {"0.003"}
    rows = prefix_rows(base, built, ["What is in metals number 2?"], PromptSettings(answer="Tell."))
    bare = base.prompts.with_text("What is in metals number 2?", PromptSettings(answer="Tell."), "")
    assert len(rows[0]) == len(bare) + 16
    tuned = tune_base(project, "metals", base, quick=True)
    assert tuned == tune_base(project, "metals", base, quick=True)
    one, other = tuned_base(project, tuned), base
    ids = torch.tensor([base.prompts.plain("What is in metals number 2?")])
    assert not torch.allclose(one.model(ids).logits, other.model(ids).logits, atol=1e-4)


def test_what_cannot_be_compared_is_one_line(project: Project, capsys, monkeypatch) -> None:
    at = ("--project", str(project.root))
    assert (
        "no method 'bm25-0'" in run(capsys, monkeypatch, "compare", "metals", "--methods", "bm25-0", *at)[2]
    )
    assert (
        "evaluation.colbert"
        in run(capsys, monkeypatch, "compare", "metals", "--methods", "colbert-2", *at)[2]
    )
    assert "no method 'magic'" in run(capsys, monkeypatch, "compare", "metals", "--methods", "magic", *at)[2]
    assert "name a domain (present: metals, plants)" in run(capsys, monkeypatch, "compare", *at)[2]
    code, _, err = run(capsys, monkeypatch, "compare", "glass", *at)
    assert code == 2 and "describes no domain 'glass'" in err


@pytest.mark.parametrize(
    ("name", "found"),
    [("bm25", ("bm25", None)), ("dense-3", ("dense", 3)), ("bm25-0", None), ("bm25-", None), ("gag", None)],
)
def test_retrieval_is_named_with_or_without_a_number(name: str, found: tuple[str, int | None] | None) -> None:
    assert retrieval_named(name) == found


@pytest.mark.parametrize(
    ("given", "odd"),
    [
        (["metals", "--real"], "DOMAIN has no effect beside --real"),
        (["--demo", "--set", "align.epochs=1"], "--set has no effect beside --demo"),
        (["--demo", "--real"], "--demo has no effect beside --real"),
    ],
)
def test_what_the_worlds_of_their_own_do_not_read_is_refused(
    given: list[str], odd: str, tmp_path: Path, capsys, monkeypatch
) -> None:
    code, _, err = run(capsys, monkeypatch, "compare", *given, "--dir", str(tmp_path / "new"))
    assert code == 2 and odd in err and not (tmp_path / "new").exists()


def test_the_peak_of_memory_is_this_process_s_own() -> None:
    """The system's count of a started process begins with what its starter had taken."""
    large = bytearray(b"x") * 400_000_000
    code = "from gag.project.memory import peak_bytes; print(peak_bytes())"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert 5_000_000 < int(done.stdout) < len(large)
