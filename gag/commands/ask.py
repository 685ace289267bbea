"""`gag ask`: a question, its answer, and on request what the answer rests on."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gag.commands.options import (
    EngineOption,
    JsonOption,
    ProjectOption,
    SetOption,
    asked,
    finish,
    with_engine,
)

if TYPE_CHECKING:
    from gag.engine.answer import Answer
    from gag.engine.evidence import Evidence


def ask(
    question: Annotated[str, typer.Argument(help="The question.")],
    domain: Annotated[str | None, typer.Option(help="Skip the router: a domain, or general.")] = None,
    background: Annotated[
        bool, typer.Option("--background", help="Also show what the expert wrote.")
    ] = False,
    evidence: Annotated[
        bool, typer.Option("--evidence", help="Also show what the vectors did for the answer.")
    ] = False,
    project: ProjectOption = None,
    engine: EngineOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer a question: routed, read, injected, and decoded by the frozen base."""
    opened = asked(question, project, with_engine(settings, engine))
    if domain is not None:
        opened.require(domain)
    from gag.engine.engine import ProjectGAG

    gag = ProjectGAG(opened)
    answer, found = gag.ask(question, domain), None
    if evidence:
        from gag.engine.evidence import evidence_of

        found = evidence_of(gag, answer)
    wanted = background or evidence
    finish(as_json, _result(answer, found, wanted), "\n".join(_lines(answer, found, wanted)))


def _result(answer: "Answer", evidence: "Evidence | None", background: bool) -> dict[str, Any]:
    written = answer.knowledge.text if answer.knowledge else None
    result = {
        "question": answer.question,
        "text": answer.text,
        "route": asdict(answer.route),
        "finish": answer.finish,
        "tokens_added": answer.tokens_added,
        "prompt_tokens": answer.prompt_tokens,
        "answer_tokens": answer.answer_tokens,
        "seconds": answer.seconds,
    }
    result |= {"background": written} if background else {}
    return result | ({"evidence": asdict(evidence)} if evidence else {})


def _lines(answer: "Answer", evidence: "Evidence | None", background: bool) -> list[str]:
    count = answer.tokens_added
    added = f"{count} vector{'s' if count > 1 else ''}" if count else "nothing"
    cut = "; cut at decoding.max_new_tokens" if answer.finish == "length" else ""
    lines = [
        answer.text,
        f"[{answer.route.domain} {answer.route.score:.3f}; {added} added to the prompt{cut}]",
    ]
    if background and answer.knowledge and answer.knowledge.text:
        lines.append(f"[expert: {answer.knowledge.text}]")
    return lines + (_evidence_lines(evidence) if evidence else [])


def _evidence_lines(evidence: "Evidence") -> list[str]:
    if evidence.support is None:
        return ["[no vectors, or an empty answer: there is nothing to weigh]"]
    gain = "log-likelihood per token that the vectors add to the answer, against zero vectors"
    lines = [f"[support {evidence.support:+.2f}: {gain}]"]
    return lines + [
        f"[near question, cosine {cosine:.3f}: {question}]" for question, cosine in evidence.questions
    ]
