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
    from gag.engine.sources import Source


def ask(
    question: Annotated[str, typer.Argument(help="The question.")],
    domain: Annotated[str | None, typer.Option(help="Skip the router: a domain, or general.")] = None,
    background: Annotated[
        bool, typer.Option("--background", help="Also show what the expert wrote.")
    ] = False,
    sources: Annotated[
        bool, typer.Option("--sources", help="Also name the passages that the answer may rest on.")
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
    result, lines = _result(answer, found, wanted), _lines(answer, found, wanted)
    if sources:
        written = answer.knowledge.text if answer.knowledge else ""
        named = gag.sources(answer.route.domain, question, written, answer.text)
        result["sources"] = [asdict(one) for one in named]
        lines += _source_lines(named, answer.route.domain)
    finish(as_json, result, "\n".join(lines))


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


def _source_lines(sources: "list[Source]", domain: str) -> list[str]:
    if not sources:
        return [f"[no source: {domain} carries no passages that hold this; see domains.NAME.sources]"]
    lines = []
    for one in sources:
        pages = f", page {', '.join(map(str, one.pages))}" if one.pages else ""
        section = f", {one.section}" if one.section and one.section != one.title else ""
        lines.append(f"[source {one.score:.2f}: {one.document}{section}{pages}]")
    return lines


def _evidence_lines(evidence: "Evidence") -> list[str]:
    if evidence.support is None:
        return ["[no vectors, or an empty answer: there is nothing to weigh]"]
    gain = "log-likelihood per token that the vectors add to the answer, against zero vectors"
    lines = [f"[support {evidence.support:+.2f}: {gain}]"]
    return lines + [
        f"[near question, cosine {cosine:.3f}: {question}]" for question, cosine in evidence.questions
    ]
