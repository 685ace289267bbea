"""From a folder of documents to a project that `gag build` takes: what can be inferred is not asked."""

import re
from dataclasses import dataclass
from pathlib import Path

from gag.corpus.asking import Endpoint
from gag.corpus.build import CorpusReport, build_corpus
from gag.corpus.files import Cutting
from gag.corpus.questions import QuestionsReport, make_questions
from gag.errors import SettingsError
from gag.models.loading import load_config, tokenizer_json
from gag.project.example import Scale, write_example
from gag.project.parsing import PROJECT_FILE
from gag.project.settings import ModelSettings, check_name

SMALL = 1024  # width of a model from which on it is tuned in smaller steps


@dataclass(frozen=True)
class Started:
    """What was made of the documents.

    Attributes:
        project: the project's gag.yaml.
        domain: its domain.
        corpus: what was read.
        questions: what was asked of it.
    """

    project: Path
    domain: str
    corpus: CorpusReport
    questions: QuestionsReport


def start_project(
    folder: Path | str,
    documents: Path | str,
    base: str,
    expert: str,
    preset: str,
    domain: str | None = None,
    endpoint: Endpoint | None = None,
) -> Started:
    """Read documents, ask questions of them, and write a project around both.

    Args:
        folder: the new project's.
        documents: a file or folder of documents.
        base: the frozen base.
        expert: the expert's backbone.
        preset: how the expert is read.
        domain: its name; none: the documents' folder's.
        endpoint: who writes the questions; none: sentences become questions.

    Raises:
        SettingsError: a project is there already, or a model cannot be loaded.
        DataError: nothing there is a document, or no question came of it.
    """
    folder, documents = Path(folder), Path(documents)
    if (folder / PROJECT_FILE).exists():
        raise SettingsError(f"{folder / PROJECT_FILE} is already there; edit it, or choose another folder")
    name = check_name(domain) if domain else _name(documents)
    data = folder / "data" / name
    counted = ModelSettings(model=base)
    tokenizer = tokenizer_json(counted, folder)
    corpus = build_corpus([documents], data / "corpus.jsonl", Cutting(counted_by=base), lambda: tokenizer)
    questions = make_questions(data / "corpus.jsonl", data, endpoint)
    width = load_config(ModelSettings(model=expert), folder).get_text_config().hidden_size
    scale = Scale(questions.train, small=width < SMALL, tested=questions.test > 0)
    path = write_example(folder, name, base, expert, preset, scale)
    return Started(path, name, corpus, questions)


def _name(documents: Path) -> str:
    """Name a domain by its documents' folder."""
    stem = documents.resolve().stem if documents.is_file() else documents.resolve().name
    name = re.sub(r"[^a-z0-9_-]+", "-", stem.lower()).strip("-_")[:64]
    return check_name(name if name and name != "general" else "documents")
