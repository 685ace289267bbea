"""What goes from a document and what stays: by place and shape, not by a word."""

from gag.corpus.cleaning import RULES, clean
from gag.corpus.documents import Block, Document
from gag.corpus.markdown import html_markdown, markdown_blocks
from gag.corpus.mineru import content_blocks

PAPER = """# A Study of Membranes

A. B. Miller^1, C. Jones and D. van Smith*

1 Department of Things, University of Somewhere

miller@somewhere.edu, received 3 May 2020, accepted 7 June 2020

## Abstract

We study membranes and find that they last longer when wet.

## 1. Introduction

The reference electrode [1] was silver. See https://example.org/a for the year 2003.

## 2. Reference electrode

It was calibrated in 2004 and 2005, as Miller et al. did before us.

![](images/a.jpg)
Fig. 1 Lifetime of a membrane against its humidity
(a)

| sample | EW |
|---|---|
| S1 | 950 |

$$ E = mc^2 $$

## 3. Open questions

Acknowledgements of receipt are sent by the cell. What funding of charge remains is open.

## Acknowledgements

We thank E. Brown for help. This work was supported by grant 42.

## References

[1] A. Miller et al., J. Things 3, 12 (2003).
[2] C. Jones, Membranes, Wiley (1999), doi:10.1000/1.
[3] D. Smith, in Handbook, pp. 3-9 (2001).

## Appendix A

Further values: 3, 4 and 5 were seen.
"""


def cleaned(text: str, *keep: str) -> dict[str, str]:
    found = clean(Document("paper.md", "A", tuple(markdown_blocks(text))), frozenset(keep))
    return {block.text: rule for block, rule in found.pairs}


def test_a_papers_apparatus_goes_and_its_body_stays() -> None:
    rules = cleaned(PAPER)
    headings = [b.text for b in markdown_blocks(PAPER) if b.kind == "heading" and not rules[b.text]]
    assert headings == [
        "A Study of Membranes", "Abstract", "1. Introduction", "2. Reference electrode", "3. Open questions",
        "Appendix A",
    ]  # fmt: skip
    gone = {text: rule for text, rule in rules.items() if rule}
    assert {text for text, rule in gone.items() if rule == "authors"} == {
        "A. B. Miller^1, C. Jones and D. van Smith*",
        "1 Department of Things, University of Somewhere",
        "miller@somewhere.edu, received 3 May 2020, accepted 7 June 2020",
    }
    assert set(gone.values()) == {"authors", "images", "acknowledgements", "references"}
    assert rules["Fig. 1 Lifetime of a membrane against its humidity"] == "" and rules["(a)"]
    assert rules["| sample | EW |\n|---|---|\n| S1 | 950 |"] == "" and rules["$$ E = mc^2 $$"] == ""
    assert rules["It was calibrated in 2004 and 2005, as Miller et al. did before us."] == ""


def test_each_rule_can_be_turned_off() -> None:
    for rule in set(cleaned(PAPER).values()) - {""}:
        assert rule not in cleaned(PAPER, rule).values()
    assert not any(cleaned(PAPER, *RULES).values())


def test_a_heading_alone_cuts_nothing() -> None:
    text = """# Manual

## References

A reference is a pointer that is never null, and it is bound once.

It cannot be bound again, whatever it stands for.

## Acknowledgment

The receiver sends a segment for each byte.

## Funding

Each account is filled once.
"""
    assert set(cleaned(text).values()) == {""}


def test_entries_without_a_heading_go_and_a_numbered_list_stays() -> None:
    body = "\n\n".join(f"Paragraph {i} says what a membrane does in water." for i in range(20))
    entries = "\n\n".join(f"[{i}] A. Miller et al., J. Things {i}, 12 (20{i:02d})." for i in range(1, 8))
    steps = "\n".join(f"{i}. Stir for {i} hours." for i in range(1, 9))
    rules = cleaned(f"# Title\n\n{body}\n\n{steps}\n\n{entries}\n")
    assert rules[steps] == ""
    assert all(rule == "references" for text, rule in rules.items() if text.startswith("["))
    assert sum(rule == "references" for rule in rules.values()) == 7


def test_lines_that_repeat_go_but_for_the_first() -> None:
    text = "\n\n".join(f"Step {i} takes {i} hours.\n\nDownloaded on 3 May" for i in range(1, 7))
    rules = clean(Document("a.md", "a", tuple(markdown_blocks(text))))
    assert [block.text for block, rule in rules.pairs if rule] == ["Downloaded on 3 May"] * 5
    paged = [
        Block("text", f"{what} {k if what == 'Step' else page}", page=page)
        for page in range(1, 7) for k in (1, 2, 3) for what in (("Step", "Seen on") if k == 1 else ("Step",))
    ]  # fmt: skip
    gone = [block.text for block, rule in clean(Document("a.pdf", "a", tuple(paged))).pairs if rule]
    assert gone == [f"Seen on {page}" for page in range(2, 7)]
    assert (
        cleaned("# T\n\nIntroduction ........ 3\nSetup ........ 5\n\nText.")[
            "Introduction ........ 3\nSetup ........ 5"
        ]
        == "contents"
    )


def test_mineru_parts_text_from_what_stands_on_the_page() -> None:
    items = """[{"type": "text", "text": "Title", "text_level": 1, "page_idx": 0},
     {"type": "text", "text": "It goes on to the", "page_idx": 0},
     {"type": "header", "text": "J. Things", "page_idx": 0},
     {"type": "text", "text": "next page.", "page_idx": 1},
     {"type": "equation", "text": "$$x$$", "page_idx": 1},
     {"type": "table", "table_body": "<table></table>", "table_caption": ["Table 1: Values"], "page_idx": 1},
     {"type": "list", "sub_type": "ref_text", "list_items": ["1. A. Miller", "2. B. Jones"], "page_idx": 1},
     {"type": "image", "img_path": "images/a.jpg", "image_caption": ["Fig. 1 A cell"], "page_idx": 1}]"""
    blocks = content_blocks(items, "a_content_list.json")
    assert [block.kind for block in blocks] == [
        "heading", "text", "furniture", "formula", "text", "table", "list", "image", "text",
    ]  # fmt: skip
    assert blocks[1] == Block("text", "It goes on to the next page.", page=1)
    rules = clean(Document("a", "a", tuple(blocks))).rules
    assert [rule for rule in rules if rule] == ["furniture", "references", "images"]


def test_a_page_of_html_loses_its_menus() -> None:
    page = (
        "<html><head><title>Cheese  stores</title></head><body>"
        "<nav><a href='/'>Home</a><a href='/x'>Shop</a></nav>"
        "<article><h1>Storing cheese</h1><p>Brie is stored at <b>four</b> degrees, in a dark cellar, "
        "for at most six weeks.</p><table><tr><th>cheese</th><th>weeks</th></tr>"
        "<tr><td>brie</td><td>6</td></tr></table></article><footer>Imprint</footer></body></html>"
    )  # fmt: skip
    text, title = html_markdown(page)
    assert title == "Cheese stores" and "Storing cheese" in text and "degrees" in text and "brie" in text
    assert "Shop" not in text
    assert html_markdown("<p>Short.</p>")[0] == "Short."


def test_a_table_of_contents_goes_with_its_heading_dotted_or_not() -> None:
    lines = [
        ("heading", "A Manual"),
        ("heading", "Contents"),
        ("heading", "1 Programming with classes 2"),
        ("text", "1.1 Styles of classes . . . . . . . . 3"),
        ("furniture", "ii"),
        ("table", "| Grids | 11 |\n| Lines | 17 |"),
        ("text", "1.2 More of it 4 1.3 And more 5"),
        ("heading", "1 Programming with classes"),
        ("text", "The contents of a class are kept in section 12"),
        ("heading", "2 Contents of a cell"),
        ("text", "There were 40"),
    ]
    blocks = tuple(
        Block(kind, text, level=1 + (i > 0), page=i // 3 + 1) for i, (kind, text) in enumerate(lines)
    )  # pyright: ignore
    found = [rule for _, rule in clean(Document("m.pdf", "A", blocks, 4), frozenset()).pairs]
    assert [i for i, rule in enumerate(found) if rule == "contents"] == [1, 2, 3, 5, 6]


def test_prose_that_names_years_is_no_list_of_references() -> None:
    laws = (f"({i}) The law of {1900 + i} says that the milk of the valley is taxed." for i in range(1, 8))
    town = "In 1998 the council kept its records there.\n\nBy 2010 the references had been kept in the inn."
    parts = (
        "# A town\n\nIt lies in a valley.\n\n## Laws",
        *laws,
        "## References",
        town,
        "## Founded",
        "1850",
    )
    assert set(cleaned("\n\n".join(parts)).values()) == {""}
