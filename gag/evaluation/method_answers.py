"""What each method of a comparison answered and how fast, kept as soon as it stands."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from gag.engine.engine import LocalGAG
from gag.evaluation.answers import times_of
from gag.evaluation.methods import CONTROLS, Method
from gag.evaluation.questions import Questions
from gag.project.artifacts import write_json
from gag.project.keys import stage_key

FURTHER = 5  # tokens after the first, that are timed


@dataclass(frozen=True)
class MethodAnswers:
    """What a method answered and how fast, as its file keeps it; `key` names what it depends on."""

    key: str
    texts: list[str]
    tokens_added: float
    first_token_ms: float
    per_token_ms: float | None
    general: list[str]  # to the general questions as a user meets the method: GAG has its router
    forced: list[str]  # to the same with GAG's vectors always on; of other methods there is no difference


def method_answers(
    folder: Path, gag: LocalGAG, domain: str, method: Method, asked: Questions
) -> MethodAnswers:
    """Let a method answer everything and time it, or take what it did before on the same inputs."""
    general = [row.question for row in asked.general]
    key = stage_key(method=method.name, made_from=method.made_from, domain=gag.domains.facts(domain).key,
                    questions=asked.texts, general=general,
                    decoding=gag.project.settings.decoding.model_dump())  # fmt: skip
    path = folder / f"{method.name}.json"
    kept = _kept(path)
    if kept and kept.key == key:
        return kept
    result = method.answer(asked.texts, None)
    first, each = _speed(gag, method, asked.texts)
    sees_general = bool(general) and method.name not in (*CONTROLS, "expert")
    answers = MethodAnswers(
        key=key,
        texts=result.texts,
        tokens_added=result.tokens_added,
        first_token_ms=first,
        per_token_ms=each,
        general=_answer_general(gag, method, general) if sees_general else [],
        forced=method.answer(general, None).texts if sees_general and method.routed else [],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    if kept:  # of other inputs: it stays beside
        path.replace(folder / f"{method.name}-{kept.key[:8]}.json")
    write_json(path, asdict(answers))
    return answers


def _kept(path: Path) -> MethodAnswers | None:
    """Read what a method did before; a file that was cut or edited counts for nothing."""
    try:
        return MethodAnswers(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None
    except (ValueError, TypeError):
        return None


def _answer_general(gag: LocalGAG, method: Method, questions: list[str]) -> list[str]:
    """Answer general questions as a user meets the method: GAG has its router, the others are always on."""
    if method.routed:
        return [answer.text for answer in gag.ask(questions)]
    return method.answer(questions, None).texts


def _speed(gag: LocalGAG, method: Method, questions: list[str]) -> tuple[float, float | None]:
    """Measure one question alone -> milliseconds to the first token, and for each further one.

    What writes its whole text before the first token, as the expert alone does here, has no time for further
    ones. That time is of the fastest rounds: noise would drown the difference.
    """
    one = questions[:1]
    first = times_of(lambda: method.answer(one, 1))
    more = times_of(lambda: method.answer(one, 1 + FURTHER))
    to_first = round(1000 * first[len(first) // 2], 2)
    text = method.answer(one, 1 + FURTHER).texts[0]
    written = min(FURTHER, len(gag.base.prompts.text(text)))  # its end, too, is a token
    if method.name == "expert" or written == 0:
        return to_first, None
    return to_first, round(1000 * max(0.0, more[0] - first[0]) / written, 2)
