"""An HTML page as its readers see it: tags, text, headings and images."""

from html.parser import HTMLParser


class HtmlPage(HTMLParser):
    """Parse a page.

    Attributes:
        tags: Every tag with its attributes.
        text: The text of the page, with single spaces.
        headings: The texts of the h2 elements.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[str] = []
        self._texts: list[str] = []
        self.feed(html)
        self.text = " ".join(" ".join(self._texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.lasttag == "h2" and data.strip():
            self.headings.append(data)
            self.lasttag = ""
        self._texts.append(data)

    def count(self, tag: str) -> int:
        """Return the number of tags of a kind."""
        return sum(name == tag for name, _ in self.tags)

    @property
    def images(self) -> list[str]:
        """The alternative texts of the images."""
        return [str(attributes["alt"]) for tag, attributes in self.tags if tag == "img"]
