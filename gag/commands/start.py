"""`gag demo` and `gag init`: the first commands."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from gag.commands.options import JsonOption, Preset, finish

PRESET_HELP = (
    "v1, v4: the paper's; vocabulary: one vector of the tokens that the expert predicts; salient: its words "
    "that are news, a vector for each token."
)


def demo(
    seed: Annotated[int, typer.Option(help="The seed of the private world.")] = 7,
    folder: Annotated[
        Path | None,
        typer.Option("--dir", help="Where the demo's project goes (default: gag-demo, or gag-demo-real)."),
    ] = None,
    preset: Annotated[
        Preset | None,
        typer.Option(help=f"{PRESET_HELP} Default: vocabulary; with --real: salient."),
    ] = None,
    real: Annotated[
        bool, typer.Option("--real", help="A real model, SmolLM2-135M, and one domain in plain English.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Build two private domains for the bundled pocket models on this machine, and show what changes."""
    from gag.commands.demo import demo as run

    folder = folder or Path("gag-demo-real" if real else "gag-demo")
    figures = run(folder, seed, preset or ("salient" if real else "vocabulary"), real=real)
    if not as_json:
        from gag.commands.demo_report import show

        show(figures, folder)
    finish(as_json, figures)


def init(
    folder: Annotated[Path, typer.Argument(help="The folder of the new project.")] = Path(),
    documents: Annotated[
        Path | None,
        typer.Option("--from", help="A folder of documents: they are read, and questions made of them."),
    ] = None,
    domain: Annotated[
        str | None, typer.Option(help="The first domain (default: the documents' folder, or materials).")
    ] = None,
    base: Annotated[
        str, typer.Option(help="The frozen base: a Hugging Face id or a folder.")
    ] = "Qwen/Qwen3-8B",
    expert: Annotated[
        str, typer.Option(help="The expert backbone: a Hugging Face id or a folder.")
    ] = "Qwen/Qwen3-1.7B",
    preset: Annotated[Preset, typer.Option(help=PRESET_HELP)] = "salient",
    endpoint: Annotated[
        str | None,
        typer.Option(
            help="Who writes questions: an OpenAI-compatible server, up to /v1 (default: no model)."
        ),
    ] = None,
    model: Annotated[str, typer.Option(help="The model's name at the endpoint.")] = "gag/general",
    key_variable: Annotated[
        str | None, typer.Option(help="The environment variable that holds the endpoint's key.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write gag.yaml for real models, with every setting that one usually changes; or all, from documents."""
    if documents is None:
        from gag.project.example import write_example

        name = domain or "materials"
        path = write_example(folder, name, base, expert, preset)
        then = f"wrote {path}; put rows into data/{name}/train.jsonl, then: gag build {name}"
        finish(as_json, {"project": str(path)}, then)
        return
    from gag.commands.corpus import corpus_table, key_of, need_corpus, questions_table

    need_corpus()
    from gag.corpus.asking import Endpoint
    from gag.corpus.project import start_project

    asked = Endpoint(endpoint, model, key_of(key_variable)) if endpoint else None
    made = start_project(folder, documents, base, expert, preset, domain, asked)
    data = folder / "data" / made.domain
    lines = [
        corpus_table(made.corpus, data / "corpus.jsonl", base),
        questions_table(made.questions, data),
        f"wrote {made.project}; now: gag build {made.domain} --project {folder}",
    ]
    finish(as_json, {"domain": made.domain, **asdict(made), "project": str(made.project)}, "\n".join(lines))
