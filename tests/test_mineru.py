"""MinerU: what its versions write, and its program as the parser of PDFs (here one that plays it)."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from gag.corpus.build import build_corpus
from gag.corpus.documents import Document
from gag.corpus.files import Cutting
from gag.corpus.parsers import check_parser
from gag.corpus.reading import Source, find_sources, read_source
from gag.errors import MissingExtraError, SettingsError
from tests.papers import paragraphs, write_pdf
from tests.test_cli import run

PAGES = [
    [
        {"type": "header", "content": "Journal of Invented Things"},
        {"type": "doc_title", "level": 1, "content": "On membranes"},
        {"type": "text", "content": "Ada Quist, Ben Orro"},
        {"type": "paragraph_title", "level": 2, "content": "1. Reference electrode"},
        {"type": "text", "content": "The membrane of Arvo carries a charge that its makers call"},
    ],
    [
        {"type": "text", "content": "tilt, and it is kept below seven."},
        {"type": "equation", "content": "$$a = b$$"},
        {
            "type": "table",
            "content": "<table><tr><td>Arvo</td><td>7</td></tr></table>",
            "captions": [{"content": "Table 1: Charges."}],
            "footnotes": [{"content": "Of the first kind."}],
        },
        {"type": "image", "content": "![](images/a.jpg)", "image_source": "images/a.jpg", "captions": []},
        {"type": "code", "content": "```\nprint(7)\n```", "captions": [{"content": "Listing 1"}]},
        {"type": "list", "content": "- one\n- two"},
        {"type": "paragraph_title", "level": 2, "content": "References"},
        {"type": "ref_text", "content": "[1] A. Quist. On tilt. J. Inv. 2020."},
        {"type": "ref_text", "content": "[2] B. Orro. On charges. J. Inv. 2021."},
        {"type": "page_number", "content": "2"},
    ],
]


def structured(pages: list[list[dict[str, Any]]]) -> str:
    return json.dumps(
        {"pages": [{"page_idx": i, "blocks": blocks} for i, blocks in enumerate(pages)], "metadata": {}}
    )


def test_structured_content_is_read_like_a_list_of_contents(tmp_path: Path) -> None:
    folder = tmp_path / "papers" / "arvo"
    folder.mkdir(parents=True)
    (folder / "structured_content.json").write_text(structured(PAGES))
    for name in ("markdown.md", "middle_json.json", "model_output.json"):
        (folder / name).write_text("# the same again")
    sources, others = find_sources([tmp_path / "papers"])
    assert [source.name for source in sources] == ["arvo/structured_content.json"] and others == {}
    document = next(iter(read_source(sources[0])))
    assert isinstance(document, Document) and (document.title, document.pages) == ("On membranes", 2)
    kinds = [(block.kind, block.note) for block in document.blocks]
    assert kinds[0] == ("furniture", "header") and kinds[-1] == ("furniture", "page_number")
    assert kinds.count(("list", "ref_text")) == 2 and ("formula", "") in kinds
    texts = [block.text for block in document.blocks]
    assert "tilt, and it is kept below seven." not in texts  # it goes on from the page before
    assert any(text.endswith("its makers call tilt, and it is kept below seven.") for text in texts)
    assert {"Table 1: Charges.", "Of the first kind.", "Listing 1", "- one\n- two"} <= set(texts)
    out = tmp_path / "corpus.jsonl"
    report = build_corpus([tmp_path / "papers"], out, Cutting(least=1))
    assert report.found[0]["headings"] == ["On membranes", "1. Reference electrode"]
    written = out.read_text()
    assert "A. Quist" not in written and "Arvo</td>" in written and "Journal" not in written


def test_structured_content_without_a_title_is_named_by_its_folder(tmp_path: Path) -> None:
    (tmp_path / "arvo").mkdir()
    path = tmp_path / "arvo" / "structured_content.json"
    path.write_text(structured([[{"type": "text", "content": "Only a sentence."}]]))
    document = next(iter(read_source(Source(path, "x"))))
    assert isinstance(document, Document) and document.title == "arvo"


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that writes what MinerU would of a PDF, and stops at one that is cut short, as it does."""
    folder = tmp_path / "bin"
    folder.mkdir()
    kit = folder / "mineru-kit"
    kit.write_text(
        f"#!{sys.executable}\n"
        "import json, sys, zipfile\n"
        "from pathlib import Path\n"
        f"with open({str(tmp_path / 'calls')!r}, 'a') as calls:\n"
        "    calls.write(json.dumps(sys.argv[1:]) + '\\n')\n"
        "inputs = sys.argv[2:sys.argv.index('-o')]\n"
        "out = Path(sys.argv[sys.argv.index('-o') + 1])\n"
        "for name in inputs:\n"
        "    raw = Path(name).read_bytes()\n"
        "    if b'%%EOF' not in raw: sys.exit('Failed to parse it (Data format error).')\n"
        "    said = {'type': 'text', 'content': f'It has {len(raw)} bytes, and a sentence of its own.'}\n"
        "    archive = out / (Path(name).stem + '.zip') if len(inputs) > 1 else out\n"
        "    made = json.dumps({'pages': [{'page_idx': 0, 'blocks': [said]}]})\n"
        "    with zipfile.ZipFile(archive, 'w') as packed:\n"
        "        packed.writestr('structured_content.json', made)\n"
    )
    kit.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return tmp_path / "calls"


def test_mineru_parses_the_pdfs_and_one_that_stops_it_is_set_aside(
    program: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    papers = tmp_path / "papers"
    (papers / "more").mkdir(parents=True)
    for i, name in enumerate(("a.pdf", "b.pdf", "c.pdf", "more/a.pdf")):
        write_pdf(papers / name, paragraphs(3 + i, i))
    (papers / "b.pdf").write_bytes((papers / "b.pdf").read_bytes()[:300])
    (papers / "note.md").write_text("# A note\n\nIt is read as ever, whoever reads the PDFs.")
    out = tmp_path / "corpus.jsonl"
    asked = ("corpus", "build", str(papers), "--out", str(out), "--json", "--parser", "mineru:flash")
    code, said, _ = run(capsys, monkeypatch, *asked)
    report = json.loads(said.splitlines()[-1])
    assert code == 0 and report["documents"] == 4 and report["read"] == 5
    assert report["set_aside"] == [
        ["b.pdf", "MinerU could not parse it: Failed to parse it (Data format error)."]
    ]
    for name in ("a.pdf", "c.pdf", "more/a.pdf"):
        assert f"It has {(papers / name).stat().st_size} bytes" in out.read_text()
    calls = [json.loads(line) for line in program.read_text().splitlines()]
    assert [len(call) - 7 for call in calls] == [4, 2]  # all of them, and those behind the one
    assert all(call[-4:] == ["-f", "zip", "--tier", "flash"] for call in calls)
    assert json.loads(run(capsys, monkeypatch, *asked)[1].splitlines()[-1])["read"] == 1
    assert len(program.read_text().splitlines()) == 3
    run(capsys, monkeypatch, *asked[:-2])  # another parser reads them again
    assert "Paragraph 0 says" in out.read_text() and len(program.read_text().splitlines()) == 3


def test_what_mineru_could_not_do_is_tried_again(program: Path, tmp_path: Path) -> None:
    kit, papers = tmp_path / "bin" / "mineru-kit", tmp_path / "papers"
    papers.mkdir()
    write_pdf(papers / "a.pdf", paragraphs(4))
    (papers / "note.md").write_text("# A note\n\nIt is read as ever, whoever reads the PDFs.")
    whole, out = kit.read_text(), tmp_path / "corpus.jsonl"
    for script, said in (
        ("print(b'\\xe9', 'CUDA out of memory'); sys.exit(1)", "CUDA out of memory"),
        ("Path(sys.argv[sys.argv.index('-o') + 1]).write_bytes(b'PK')", "could not parse it"),
    ):
        kit.write_text(f"#!{sys.executable}\nimport sys\nfrom pathlib import Path\n{script}\n")
        report = build_corpus([papers], out, Cutting(parser="mineru"))
        assert report.documents == 1 and said in report.set_aside[0][1]
    kit.write_text(whole)
    report = build_corpus([papers], out, Cutting(parser="mineru"))
    assert (report.documents, report.read, report.set_aside) == (2, 1, [])


def test_a_parser_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingExtraError, match="mineru-kit is not on the path; install MinerU 4"):
        check_parser("mineru")
    for wrong in ("pdf", "mineru:best", "pypdfium2:flash"):
        with pytest.raises(SettingsError, match="take pypdfium2, mineru, or a tier"):
            check_parser(wrong)
    assert check_parser("pypdfium2") == "pypdfium2"
