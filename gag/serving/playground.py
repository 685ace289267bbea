"""The playground at /ui: ask, see where the question goes and what the expert writes, and what the base says.

It asks no other host: fonts and scripts come from here, and nothing is reported to anybody.
"""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from html import escape
from typing import Any

import gradio
from fastapi import FastAPI
from fastapi.responses import RedirectResponse, Response

from gag.engine.asking import Ask
from gag.errors import GagError
from gag.project.rows import check_text
from gag.project.settings import GENERAL
from gag.serving.errors import RequestError, refused
from gag.serving.keys import Key
from gag.serving.server import Server
from gag.serving.streaming import Exchange
from gag.serving.told import SCORES, Told

AUTO = "automatic"
EACH = 0.05  # seconds between two looks at an answer that grows
LONGEST = 4000  # characters of a question
TIMED = {"wait": "waited", "route": "routed", "read": "expert", "answer": "answered"}  # parts of the way
STYLE = """
footer { display: none !important; }
.gag-head h1 { margin: 0.2em 0 0; font-size: 1.5em; }
.gag-head p, .gag-note { opacity: 0.75; margin: 0.2em 0; }
#ask { align-self: stretch; }
.gag-bar { display: grid; grid-template-columns: minmax(5em, 9em) 1fr 3.5em; gap: 0.6em; align-items: center;
           margin: 0.25em 0; }
.gag-bar span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.gag-bar i { display: block; height: 0.8em; border-radius: 0.2em; background: var(--border-color-primary); }
.gag-bar i b { display: block; height: 100%; border-radius: 0.2em; background: #9aa4b2; }
.gag-bar.chosen { font-weight: 600; } .gag-bar.chosen i b { background: #2563eb; }
.gag-bar em { font-style: normal; font-variant-numeric: tabular-nums; text-align: right; }
.gag-error { color: #b91c1c; }
"""


def add_playground(app: FastAPI, server: Server) -> None:
    """Put the playground under /ui, and have / lead there."""
    app.get("/", include_in_schema=False)(lambda: RedirectResponse("/ui"))
    app.get("/favicon.ico", include_in_schema=False)(lambda: Response(status_code=204))  # browsers ask for it
    gradio.mount_gradio_app(
        app,
        _page(server),
        "/ui",
        footer_links=[],
        show_error=False,
        max_file_size=1,  # nobody uploads anything here
        ssr_mode=False,
        enable_monitoring=False,
        theme=gradio.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=STYLE,
    )


def _page(server: Server) -> gradio.Blocks:
    """Lay the page out."""
    base, keyed = server.gag.base.facts.model, server.keys.are_asked_for
    with gradio.Blocks(analytics_enabled=False, title="GAG playground") as page:
        gradio.HTML(
            "<h1>GAG</h1><p>Private knowledge, injected as vectors into "
            f"<b>{escape(base)}</b>, whose weights stay as they are.</p>",
            elem_classes="gag-head",
        )
        key = gradio.Textbox(label="Key", type="password", visible=keyed, elem_id="key", max_length=200)
        question = gradio.Textbox(
            label="Question", lines=2, max_length=LONGEST, elem_id="question", autofocus=True,
            placeholder="Ask something of your field, or something general",
        )  # fmt: skip
        with gradio.Row():
            domain = gradio.Dropdown(
                [AUTO, GENERAL],
                value=AUTO,
                label="Route",
                elem_id="domain",
                min_width=160,
                allow_custom_value=True,
            )
            beside = gradio.Checkbox(True, label="Also ask the base alone", min_width=160, elem_id="beside")
            ask = gradio.Button("Ask", variant="primary", elem_id="ask", min_width=120)
        with gradio.Row(equal_height=True):
            answer = gradio.Textbox(label="GAG", lines=4, elem_id="answer", min_width=280, buttons=["copy"])
            alone = gradio.Textbox(label="The base alone", lines=4, elem_id="alone", min_width=280)
        route = gradio.HTML(container=True, elem_id="route", padding=True)
        background = gradio.Textbox(label="What the expert wrote", lines=3, elem_id="background")
        note = gradio.HTML(elem_id="note")
        if not keyed:  # whoever has no key sees no names
            names = lambda: gradio.update(choices=[AUTO, GENERAL, *server.gag.domains.names])  # noqa: E731
            page.load(names, None, domain, api_visibility="private")

        async def told(*given: Any) -> AsyncGenerator[tuple[str, ...]]:
            async with aclosing(_answered(server, *given)) as found:
                async for shown in found:
                    yield shown

        gradio.on(
            [ask.click, question.submit],
            told,
            [question, domain, beside, key],
            [answer, alone, route, background, note],
            show_progress="hidden",
            concurrency_limit=None,
            api_visibility="private",
        )
    return page


async def _answered(
    server: Server, question: str, domain: str, beside: bool, given: str
) -> AsyncGenerator[tuple[str, ...]]:
    """Answer a question -> what `_shown` says of it, again and again."""
    try:
        key = server.keys.find(f"Bearer {given}" if given else None)
        asks = _asks(server, question, domain, beside, key)
        exchange = Exchange(server.owner, server.metrics, asks, None)
        shown = 0.0
        async with aclosing(exchange.events()) as events:
            async for _ in events:
                if time.monotonic() - shown > EACH:
                    yield _shown(exchange)
                    shown = time.monotonic()
    except (RequestError, GagError) as error:
        yield "", "", "", "", _refusal(error if isinstance(error, RequestError) else refused(error))
        return
    yield _shown(exchange)


def _asks(server: Server, question: str, domain: str, beside: bool, key: Key) -> list[Ask]:
    """Make the question, and the same to the base alone."""
    text = check_text((question or "").strip()[:LONGEST], "the question")
    if not text:
        raise RequestError(400, "ask something", "question")
    chosen = None if domain == AUTO else server.domain(f"gag/{domain}", key)
    ask = Ask((("user", text),))
    asks = [ask.sent(chosen, key.domains, server.settings.turns)]
    return [*asks, ask.sent(GENERAL, key.domains, 1)] if beside else asks


def _shown(exchange: Exchange) -> tuple[str, ...]:
    """Return what the page shows of a question so far.

    The answer, the base's alone, the route, the expert's text, and a note.
    """
    told, alone = exchange.told[0], exchange.told[1] if len(exchange.told) > 1 else None
    error = next((refused(one.error) for one in exchange.told if one.error), None)
    note = _refusal(error) if error else _note(told, exchange.seconds[0])
    return told.texts[0], alone.texts[0] if alone else "", _route(told), told.background, note


def _route(told: Told) -> str:
    """Draw the scores of the likeliest routes, and say why one won."""
    route = told.route
    if route is None:
        return ""
    best = sorted(route.scores.items(), key=lambda pair: -pair[1])[:SCORES]
    least, most = min([0.0, *(s for _, s in best)]), max([1.0, *(s for _, s in best)])
    share = {name: (score - least) / (most - least) for name, score in best}
    bars = "".join(_bar(name, score, share[name], name == route.domain) for name, score in best)
    why = f"Route: {route.domain}, {route.reason}"
    return f"<p class='gag-note'>{escape(why)}</p>{bars}"


def _bar(name: str, score: float, share: float, chosen: bool) -> str:
    kind = "gag-bar chosen" if chosen else "gag-bar"
    width = f"<i><b style='width:{100 * share:.1f}%'></b></i>"
    return f"<div class='{kind}'><span>{escape(name)}</span>{width}<em>{score:.3f}</em></div>"


def _note(told: Told, seconds: dict[str, float]) -> str:
    """Say what was injected, and what each part of the way took."""
    parts = [
        f"{said} {max(0.0, seconds[part]):.2f} s"
        for part, said in TIMED.items()
        if seconds.get(part, -1) >= 0
    ]
    added = f"{told.vectors} vector{'s' if told.vectors > 1 else ''}" if told.vectors else "nothing"
    words = f" ({escape(', '.join(told.words))})" if told.words else ""
    return f"<p class='gag-note'>{added}{words} added to the prompt; {'; '.join(parts)}</p>"


def _refusal(error: RequestError) -> str:
    return f"<p class='gag-error'>{escape(error.message)}</p>"
