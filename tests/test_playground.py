"""The playground in a real browser: typed, answered, streamed, on a desk and on a telephone."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from gag import GAG
from gag.project.project import load_project
from gag.serving.keys import new_key
from tests.served import Served, serve
from tests.test_engine import QUESTIONS

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="no Chromium here (apt install chromium)"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playing:
        opened = playing.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def served(built: Path) -> Iterator[Served]:
    with serve(load_project(built, ("serve.ui=true", "decoding.max_new_tokens=6"))) as client:
        yield client


class Page:
    """The page, and what it did beside showing itself."""

    def __init__(self, browser, served: Served, width: int):
        self.page = browser.new_page(viewport={"width": width, "height": 900})
        self.errors, self.hosts = [], set()
        self.page.on(
            "console",
            lambda m: self.errors.append(f"{m.text} {m.location['url']}") if m.type == "error" else None,
        )
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.hosts.add(request.url.split("/")[2]))
        self.page.goto(f"{served.base_url}/ui")
        self.page.wait_for_selector("#question textarea")
        self.page.wait_for_load_state("networkidle")

    def ask(self, question: str) -> None:
        self.page.fill("#question textarea", question)
        self.page.click("#ask")
        self.page.wait_for_function("document.querySelector('#note').innerText.includes('answered')")

    def value(self, name: str) -> str:
        return self.page.input_value(f"#{name} textarea")


@pytest.mark.parametrize("width", [390, 1280])
def test_a_question_is_typed_and_answered(browser, served: Served, built: Path, width: int, tmp_path) -> None:
    gag = GAG.open(load_project(built, ("decoding.max_new_tokens=6",)))
    mine, alone = gag.ask(QUESTIONS[0]), gag.ask(QUESTIONS[0], "general")
    view = Page(browser, served, width)
    view.ask(QUESTIONS[0])
    view.page.screenshot(path=tmp_path / f"{width}.png", full_page=True)
    assert (view.value("answer"), view.value("alone")) == (mine.text, alone.text)
    assert view.value("background") == mine.knowledge.text
    route = view.page.inner_text("#route")
    assert all(name in route for name in (mine.route.domain, mine.route.reason, "general", "plants"))
    assert "vector" in view.page.inner_text("#note")
    assert view.errors == [] and view.hosts <= {served.base_url.netloc.decode()}
    assert view.page.evaluate("document.documentElement.scrollWidth") <= width
    view.page.close()


def test_what_is_typed_stays_text_and_a_refusal_is_shown(browser, served: Served) -> None:
    view = Page(browser, served, 1280)
    view.ask("<img src=x onerror=alert(1)> <|im_end|>")
    assert view.page.query_selector("#route img") is None
    view.page.fill("#question textarea", " ")
    view.page.click("#ask")
    view.page.wait_for_function("document.querySelector('#note').innerText.includes('ask something')")
    assert view.errors == []
    view.page.close()


def test_with_keys_nothing_is_answered_or_named_without_one(browser, built: Path, tmp_path: Path) -> None:
    shutil.copytree(built, tmp_path / "keyed")
    key = new_key(tmp_path / "keyed" / "keys.yaml", "reader", ["plants"], admin=False)
    project = load_project(tmp_path / "keyed", ("serve.ui=true", "serve.keys=keys.yaml"))
    with serve(project, key) as served:
        view = Page(browser, served, 1280)
        view.page.fill("#question textarea", QUESTIONS[0])
        view.page.click("#ask")
        view.page.wait_for_function("document.querySelector('#note').innerText.includes('key')")
        assert view.value("answer") == "" and "metals" not in view.page.content()
        view.page.fill("#key input", key)
        view.ask(QUESTIONS[0])
        assert "metals" not in view.page.inner_text("#route")
        view.page.close()


def test_nobody_uploads_a_file_or_reads_one(served: Served) -> None:
    sent = served.post("/ui/gradio_api/upload", files={"files": ("a.txt", b"x" * 100)})
    assert sent.status_code >= 400
    for path in ("/etc/passwd", "gag.yaml", "../gag.yaml"):
        assert served.get(f"/ui/gradio_api/file={path}").status_code >= 400
    assert (
        "analytics_enabled" not in served.get("/ui/config").text
        or served.get("/ui/config").json()["analytics_enabled"] is False
    )
