"""From files to passages: each reader, what is no document, what is read again, and what is left out."""

import csv
import json
import os
from pathlib import Path

import pytest

from gag.corpus.build import build_corpus
from gag.corpus.cleaning import clean
from gag.corpus.columns import in_order
from gag.corpus.documents import Block, Document
from gag.corpus.duplicates import jaccard, near_duplicates, shingles
from gag.corpus.files import Cutting
from gag.corpus.layout import Line, joined
from gag.corpus.layout import paragraphs as paragraphs_of
from gag.corpus.pdf import _body_size
from gag.corpus.reading import Source, find_sources, read_source
from gag.errors import DataError
from tests.papers import HEADINGS, ROWS, paragraphs, write_paper, write_pdf
from tests.test_corpus_cleaning import PAPER

TEXT = "Brie is stored at four degrees, in a dark and damp cellar, for at most {} weeks. It is turned daily."


def read(path: Path) -> list[Document]:
    return [found for found in read_source(Source(path, path.name)) if isinstance(found, Document)]


def faults(path: Path) -> list[str]:
    return [found[1] for found in read_source(Source(path, path.name)) if not isinstance(found, Document)]


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("columns", [1, 2])
def test_every_paragraph_of_a_pdf_once_and_in_order(tmp_path: Path, columns: int) -> None:
    texts = paragraphs(3800 if columns == 1 else 600)
    write_pdf(tmp_path / "paper.pdf", texts, columns, tables=columns == 2)
    (document,) = read(tmp_path / "paper.pdf")
    assert document.pages >= 300 if columns == 1 else document.pages >= 40
    found = [block.text for block in document.blocks if block.kind == "text"]
    lone = {" ".join(row) for row in ROWS} if columns == 2 else set()  # a row that a column's end parts
    assert [text for text in found if text not in lone] == texts
    headings = [block.text for block in document.blocks if block.kind == "heading"]
    assert headings[0] == document.title == "A Study of Invented Things and Their Many Wonderful Properties"
    assert len(headings) == 1 + -(-len(texts) // 12)
    furniture = [block for block in document.blocks if block.kind == "furniture"]
    assert len(furniture) == 2 * document.pages
    if columns == 2:
        tables = [block.text for block in document.blocks if block.kind == "table"]
        assert len(tables) >= 15 and tables[0].startswith(
            "| Membrane | Weight | Thickness |\n| Advanced | 780 | 50 |"
        )
        said = "\n".join(tables + found)
        assert {said.count(cell) for row in ROWS for cell in row[:1]} == {15}  # at a page's edge too


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize(
    ("heads", "entries"),
    [
        ("alternating", "bracketed"),
        ("alternating", "plain"),
        ("counted", "author-year"),
        ("roman", "numbered"),
        ("roman", "headless"),
    ],
)
def test_a_papers_text_is_whole_and_its_apparatus_gone(
    tmp_path: Path, columns: int, heads: str, entries: str
) -> None:
    """Tables stand at pages' edges, a footnote and floats between the parts of paragraphs."""
    made = write_paper(tmp_path / "paper.pdf", columns, heads, entries)
    (document,) = read(tmp_path / "paper.pdf")
    kept = clean(document, frozenset()).kept
    assert [block.text for block in kept if block.text.startswith("Paragraph")] == made.texts
    said = "\n".join(block.text for block in kept)
    assert [said.count(cell) for cell in made.cells] == [1] * len(made.cells)
    found = [block.text for block in kept if block.kind == "heading"]
    assert found[1:] == ["Abstract", *(f"{i}. {name}" for i, name in enumerate(HEADINGS, 1))]
    for word in ("RUNNING", "LISTED", "THANKED", "Ben Orro", "Institute of Valleys", " of 12"):
        assert word not in said
    furniture = [block for block in document.blocks if block.kind == "furniture"]
    assert len(furniture) == document.pages * (2 if heads == "alternating" else 1)


def test_what_stands_at_an_edge_and_says_something_else_each_time_stays(tmp_path: Path) -> None:
    from reportlab.pdfgen.canvas import Canvas

    canvas = Canvas(str(tmp_path / "letters.pdf"))
    for number in range(7):  # a first line with white below, a year alone, rows far apart, a foot that counts
        canvas.setFont("Times-Roman", 11)
        canvas.drawString(60, 790, f"Dear Ada, your cheese has number {37 * number % 11}.")
        canvas.drawString(60, 760, "The milk is warmed in a copper kettle over a fire of wood.")
        canvas.drawString(60, 730, f"{1850 + 7 * number}")
        for row in range(28):
            for left, cell in ((60, f"LN{37 * number % 11}x{row}"), (200, "Nafion"), (340, str(37 * row))):
                canvas.drawString(left, 700 - 23 * row, cell)
        canvas.setFont("Times-Roman", 8)
        canvas.drawString(300, 20, str(number + 1))
        canvas.showPage()
    canvas.save()
    (document,) = read(tmp_path / "letters.pdf")
    said = "\n".join(block.text for block in clean(document, frozenset()).kept)
    for number in range(7):
        assert f"has number {37 * number % 11}." in said and f"{1850 + 7 * number}" in said
        assert all(f"LN{37 * number % 11}x{row} | Nafion | {37 * row}" in said for row in range(28))
    furniture = [block.text for block in document.blocks if block.kind == "furniture"]
    assert [text for text in furniture if text.isdigit()] == [str(number) for number in range(1, 8)]


def test_a_corpus_is_written_over_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(TEXT.format(3))
    (tmp_path / "mine.jsonl").write_text('{"text": "A row of mine, which is long enough to be a passage."}\n')
    with pytest.raises(DataError, match="is one of the documents"):
        build_corpus([tmp_path / "mine.jsonl"], tmp_path / "mine.jsonl", Cutting())
    with pytest.raises(DataError, match="no run of this wrote it"):
        build_corpus([tmp_path / "a.md"], tmp_path / "mine.jsonl", Cutting())
    with pytest.raises(DataError, match="is no file's name"):
        build_corpus([tmp_path / "a.md"], tmp_path, Cutting())
    assert "A row of mine" in (tmp_path / "mine.jsonl").read_text()


def test_another_file_of_the_same_name_and_time_is_read(tmp_path: Path) -> None:
    for folder, word in (("p", "cedar"), ("q", "beech")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.md").write_text(f"The vats of the valley were made of {word} from the hill.")
        os.utime(tmp_path / folder / "a.md", (10**9, 10**9))
    out = tmp_path / "corpus.jsonl"
    for folder, word in (("p", "cedar"), ("q", "beech")):
        build_corpus([tmp_path / folder], out, Cutting())
        assert word in out.read_text()


def test_a_name_of_any_bytes_and_a_damaged_report_do_no_harm(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path / "in")
    Path(os.fsdecode(folder)).mkdir()
    Path(os.fsdecode(folder + b"/bad\xff.md")).write_text(TEXT.format(3))
    out = tmp_path / "corpus.jsonl"
    for _ in range(2):
        assert build_corpus([tmp_path / "in"], out, Cutting()).passages == 1
        (tmp_path / "corpus.report.json").write_text("{")


def test_a_table_over_both_columns_stays_one() -> None:
    def prose(left: float, height: float) -> Line:
        return Line(
            "the membrane of Arvo carries a charge", left, height, left + 230, height + 8, 10, False, 1
        )

    def cells(height: float) -> list[Line]:
        places = [60, 150, 240, 330, 420, 500]
        return [Line(f"{height:g}/{x}", x, height, x + 30, height + 8, 10, False, 1) for x in places]

    above, below = [700 - 12 * i for i in range(12)], [400 - 12 * i for i in range(12)]
    table = [540 - 14 * i for i in range(6)]
    lines = [prose(left, height) for height in (*above, *below) for left in (50, 300)]
    lines += [cell for height in table for cell in cells(height)]
    ordered = in_order(lines, 595, [])
    assert [line.left for line in ordered] == [50] * 12 + [300] * 12 + [60] * 6 + [50] * 12 + [300] * 12
    assert [len(line.cells) for line in ordered if line.left == 60] == [6] * 6


def test_the_bodys_size_is_that_of_sentences_whatever_stands_in_code() -> None:
    code = [
        Line(f'> plot(x[{i}], y = "z{i}", lwd = {i}, col = rainbow(9))', 50, 700, 500, 708, 9, False, 1)
        for i in range(15)
    ]
    said = [
        Line("the charge of the membrane grows with depth", 50, 700, 500, 710, 11, False, 1)
        for _ in range(10)
    ]
    assert _body_size([code, said]) == 11


def test_what_stands_below_each_other_by_chance_is_no_table() -> None:
    """Entries whose words were spread to the edge; a glossary's explanations begin below each other."""

    def row(place: int, *cells: tuple[str, float, float]) -> list[Line]:
        top = 700 - 12 * place
        return [Line(text, left, top, right, top + 8, 10, False, 1) for text, left, right in cells]

    spread = [
        *row(0, ("Balkin TJ in all of the valley (2003).", 74, 250), ("Patterns of charge", 262, 530)),
        *row(1, ("Restriction and what comes of it in", 74, 240), ("all that follows", 255, 530)),
        *row(2, ("Research on tilt, which goes on and", 74, 246), ("on in the valley", 259, 530)),
    ]
    glossary = [
        *row(-2, ("It was explained in the words of the valley, from edge to edge:", 74, 530)),
        *row(0, ("plot", 74, 100), ("the plotting of what is there", 150, 420)),
        *row(1, ("lines", 74, 102), ("the adding of a series to a plot", 150, 400)),
    ]
    assert [line.cells for line in in_order(spread, 595, [])] == [()] * 3
    assert [len(line.cells) for line in in_order(glossary, 595, [])] == [0, 2, 2]


def test_lines_are_parted_where_a_formula_or_an_entry_ends() -> None:
    def line(text: str, left: float, right: float, place: int) -> Line:
        return Line(text, left, 700 - 12 * place, right, 708 - 12 * place, 10, False, 1)

    rows = [
        ("The charge of the membrane grows as it says here,", 72, 530),
        ("where the depth is known.", 60, 300),
        ("E = m c (1)", 260, 330),
        ("Orro measured it in every cellar of the valley, and", 60, 530),
        ("found no other law.", 60, 200),
    ]
    blocks = paragraphs_of([line(*row, i) for i, row in enumerate(rows)], 10.0)
    assert [block.text.split()[0] for block in blocks] == ["The", "E", "Orro"]
    hanging = [
        ("Quist, A. (2010). On tilt and all that it means for", 60, 530),
        ("valleys. J. Arvo 3, 4.", 74, 300),
        ("Orro, B. (2011). On charge and all that it means for", 60, 530),
        ("cellars. J. Arvo 5, 6.", 74, 300),
    ]
    blocks = paragraphs_of([line(*row, i) for i, row in enumerate(hanging)], 10.0)
    assert [block.text.split()[0] for block in blocks] == ["Quist,", "Orro,"]


def test_what_goes_on_behind_a_page_is_joined_in_any_script() -> None:
    def block(kind: str, text: str, page: int, note: str = "") -> Block:
        return Block(kind, text, page=page, note=note)

    parts = [
        block("text", "The charge of the membrane", 1),
        block("text", "1 A footnote, which ends", 1, "small"),
        block("furniture", "7", 1),
        block("table", "| a | 1 |", 2),
        block("text", "grows with depth.", 2),
        block("text", "薄膜的电荷随深度", 2),
        block("text", "增加而减小。", 3),
        block("text", "a list of words", 5),
    ]
    texts = [one.text for one in joined(parts) if one.kind == "text"]
    assert texts == [
        "The charge of the membrane grows with depth.", "1 A footnote, which ends",
        "薄膜的电荷随深度增加而减小。", "a list of words",
    ]  # fmt: skip


def test_a_pdf_without_text_says_what_reads_it(tmp_path: Path) -> None:
    from reportlab.lib.pdfencrypt import StandardEncryption
    from reportlab.pdfgen.canvas import Canvas

    scanned = Canvas(str(tmp_path / "scanned.pdf"))
    for _ in range(3):
        scanned.rect(10, 10, 100, 100, fill=1)
        scanned.showPage()
    scanned.save()
    signs = Canvas(str(tmp_path / "signs.pdf"))  # as of fonts that name no letters
    signs.setFont("ZapfDingbats", 12)
    signs.drawString(50, 700, "The charge of the membrane grows with depth.")
    signs.save()
    locked = Canvas(str(tmp_path / "locked.pdf"), encrypt=StandardEncryption("secret"))
    locked.drawString(100, 100, "Nobody reads this.")
    locked.save()
    write_pdf(tmp_path / "whole.pdf", paragraphs(30))
    whole = (tmp_path / "whole.pdf").read_bytes()
    (tmp_path / "short.pdf").write_bytes(whole[:200])
    (tmp_path / "empty.pdf").write_bytes(b"")
    assert "MinerU" in faults(tmp_path / "scanned.pdf")[0]
    assert "its letters have no meaning" in faults(tmp_path / "signs.pdf")[0]
    assert "encrypted" in faults(tmp_path / "locked.pdf")[0]
    assert "no whole PDF" in faults(tmp_path / "short.pdf")[0]
    assert "no whole PDF" in faults(tmp_path / "empty.pdf")[0]


def test_rows_are_documents(tmp_path: Path) -> None:
    found = [{"title": f"Cheese {i}", "text": TEXT.format(i)} for i in range(3)]
    lines = [*map(json.dumps, found), "{half", '"a text"', '{"title": "none"}', ""]
    (tmp_path / "a.jsonl").write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")
    with (tmp_path / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["title", "text"], delimiter=";")
        writer.writeheader()
        writer.writerows(found)
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(found), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.csv", "a.parquet"):
        documents = read(tmp_path / name)
        assert [document.title for document in documents] == ["Cheese 0", "Cheese 1", "Cheese 2"]
        assert documents[1].blocks[0].text == TEXT.format(1)
    assert len(faults(tmp_path / "a.jsonl")) == 3
    (tmp_path / "b.csv").write_text("question,answer\na,b\n")
    assert "column" in faults(tmp_path / "b.csv")[-1]
    (tmp_path / "b.parquet").write_bytes(b"PAR1 and no more")
    assert "Parquet" in faults(tmp_path / "b.parquet")[0]


def test_what_is_no_text_is_set_aside_by_name(tmp_path: Path) -> None:
    (tmp_path / "binary.md").write_bytes(os.urandom(4000) + b"\x00" * 9)
    (tmp_path / "empty.md").write_text(" \n")
    (tmp_path / "latin.txt").write_bytes("Käse für vier Wochen.\n\nUnd mehr.".encode("cp1252"))
    (tmp_path / "wide.txt").write_text(TEXT.format(2), encoding="utf-16")
    with (tmp_path / "line.md").open("wb") as file:
        file.truncate(101_000_000)
    (tmp_path / "deep.md").write_text("> " * 3000 + "deep")
    (tmp_path / "list_content_list.json").write_text('{"no": "list"}')
    (tmp_path / "picture.png").write_bytes(b"png")
    report = build_corpus([tmp_path], tmp_path / "out" / "corpus.jsonl", Cutting(least=0))
    aside = dict(report.set_aside)
    assert {"binary.md", "empty.md", "line.md", "list_content_list.json"} <= aside.keys()
    assert "no text" in aside["binary.md"] and "101 MB" in aside["line.md"]
    assert report.unread == {".png": 1}
    assert {row["document"] for row in rows(tmp_path / "out" / "corpus.jsonl")} >= {"latin.txt", "wide.txt"}
    assert "Käse" in (tmp_path / "out" / "corpus.jsonl").read_text()


def test_a_corpus_among_its_documents_is_no_document(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(TEXT.format(3))
    for _ in range(2):
        report = build_corpus([tmp_path], tmp_path / "corpus.jsonl", Cutting(least=0))
        assert (report.files, report.passages, report.unread) == (1, 1, {})
    report = build_corpus([tmp_path], tmp_path / "other" / "corpus.jsonl", Cutting(least=0))
    assert report.files == 1
    named = build_corpus([tmp_path / "corpus.jsonl"], tmp_path / "named.jsonl", Cutting(least=0))
    assert (named.files, named.passages) == (1, 1)


def test_front_matter_gives_the_title_and_comments_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    front = '---\ntitle: "The Cheese: a story"\ntags: [a]\n---\n\n# Wash\n\nBrine <!-- or so --> it is.\n\n'
    rest = "<!--\nall\n\nof it -->\n\n```\n<!-- code -->\n```\n"
    path.write_text((front + rest).replace("\n", "\r\n"), newline="")
    (document,) = read(path)
    assert document.title == "The Cheese: a story"
    assert [block.text for block in document.blocks] == ["Wash", "Brine  it is.", "```\n<!-- code -->\n```"]


def test_mineru_counts_once_and_names_stay_apart(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "paper.md").write_text(PAPER)
    (tmp_path / "a" / "paper_content_list.json").write_text("[]")
    (tmp_path / "b" / ".hidden.md").write_text(PAPER)
    sources, _ = find_sources([tmp_path])
    assert [source.name for source in sources] == ["a/paper_content_list.json", "b/paper.md"]
    sources, _ = find_sources([tmp_path / "a" / "paper.md", tmp_path / "b" / "paper.md", tmp_path / "b"])
    assert len(sources) == 2
    with pytest.raises(DataError, match="not there"):
        find_sources([tmp_path / "c"])


def test_passages_hold_their_origin_and_all_that_stays(tmp_path: Path) -> None:
    body = "\n\n".join(
        f"Sentence {i} says that membrane {i} lasts {i * 7} hours in water." for i in range(60)
    )
    (tmp_path / "a.md").write_text(
        f"# Membranes\n\n## Lifetimes\n\n{body}\n\n## Other\n\nWrite to a@b.org or +49 30 1234 5678.\n"
    )
    out = tmp_path / "corpus.jsonl"
    report = build_corpus([tmp_path / "a.md"], out, Cutting(tokens=64, least=0))
    found = rows(out)
    assert report.passages == len(found) and all(row["tokens"] <= 64 for row in found)
    assert " ".join(" ".join(row["text"] for row in found).split()).count("Sentence") == 60
    assert {row["section"] for row in found} == {"Membranes > Lifetimes", "Membranes > Other"}
    assert {(row["document"], row["title"], row["language"]) for row in found} == {
        ("a.md", "Membranes", "en")
    }
    assert found[-1]["personal"] == ["e-mail", "phone"]
    assert len({row["id"] for row in found}) == len(found)
    build_corpus([tmp_path / "a.md"], out, Cutting(tokens=64, least=0, mask=True))
    assert "Write to [e-mail] or [phone]." in rows(out)[-1]["text"]


def test_only_what_changed_is_read_again(tmp_path: Path) -> None:
    folder, out = tmp_path / "docs", tmp_path / "corpus.jsonl"
    folder.mkdir()
    for i in range(5):
        (folder / f"{i}.md").write_text(f"# Number {i}\n\n{' '.join(paragraphs(3, seed=i))}\n")
    cutting = Cutting(tokens=100)
    first = build_corpus([folder], out, cutting)
    told = out.read_bytes()
    assert (first.files, first.read) == (5, 5)
    again = build_corpus([folder], out, cutting)
    assert again.read == 0 and again.passages == first.passages and out.read_bytes() == told
    (folder / "1.md").write_text(f"# Number 1\n\n{paragraphs(1, seed=9)[0]}\n")
    os.utime(folder / "2.md")  # touched, the same bytes
    assert build_corpus([folder], out, cutting).read == 1
    (folder / "4.md").unlink()
    assert build_corpus([folder], out, cutting).files == 4
    assert {row["document"] for row in rows(out)} == {"0.md", "1.md", "2.md", "3.md"}
    assert build_corpus([folder], out, Cutting(tokens=60)).read == 4
    out.write_text("")  # edited: written anew
    assert build_corpus([folder], out, Cutting(tokens=60)).passages == len(rows(out)) > 0
    state = tmp_path / "corpus.documents.jsonl"
    state.write_bytes(state.read_bytes()[:-40])  # broken off
    assert build_corpus([folder], out, Cutting(tokens=60)).read == 1


def test_several_processes_find_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    for i in range(6):
        (folder / f"{i}.md").write_text(f"# Number {i}\n\n{' '.join(paragraphs(3, seed=i))}\n")
    build_corpus([folder], tmp_path / "one.jsonl", Cutting(tokens=100))
    monkeypatch.setattr("gag.corpus.files.ALONE", 0)
    build_corpus([folder], tmp_path / "two.jsonl", Cutting(tokens=100))
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()


def test_what_was_said_before_is_left_out(tmp_path: Path) -> None:
    text = paragraphs(1, seed=3)[0]
    words = text.split()
    near = " ".join([*words[:-1], "otherwise."])
    other = paragraphs(1, seed=4)[0]
    assert jaccard(shingles(text), shingles(near)) > 0.8 > jaccard(shingles(text), shingles(other))
    assert near_duplicates([text, other, near, text.upper(), "two words", "two words"]) == {2: 0, 3: 0, 5: 4}
    for name, said in (("a", text), ("b", near), ("c", other)):
        (tmp_path / f"{name}.txt").write_text(said)
    (tmp_path / "d.txt").write_text(
        "Der Käse wird bei vier Grad in einem dunklen Keller gelagert, sechs Wochen lang."
    )
    report = build_corpus([tmp_path], tmp_path / "x.jsonl", Cutting(languages=frozenset({"de"})))
    assert [row["document"] for row in rows(tmp_path / "x.jsonl")] == ["d.txt"]
    (
        (tmp_path / "x.documents.jsonl").unlink(),
        (tmp_path / "x.report.json").unlink(),
        (tmp_path / "x.jsonl").unlink(),
    )
    report = build_corpus([tmp_path], tmp_path / "out" / "x.jsonl", Cutting())
    assert report.passages == 3 and report.dropped == {"nearly said before": 1}


def test_nothing_to_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no document was found"):
        build_corpus([tmp_path], tmp_path / "out" / "corpus.jsonl", Cutting())
