"""A page as tests look at it."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """Tags, references, section ids, rows of table cells and the text of a page."""

    VOID = ("meta", "img", "path", "circle")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.references: list[str] = []
        self.sections: set[str] = set()
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self.references += [v for k, v in attributes if k in ("src", "href", "srcset", "data")]
        self.sections |= {v for k, v in attributes if k == "id"}
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        self.tags.add(tag)

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.text += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data + ("|" if self.open[-1] == "span" else "")
