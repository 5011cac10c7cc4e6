"""One page of HTML that needs nothing else: light and dark, on paper, on a phone."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources


def document(title: str, body: Iterable[str]) -> str:
    """The whole page.

    Args:
        title: as plain text. body: as HTML, in pieces.
    """
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>{escape(title)}</title><style>{packaged('page.css')}</style>"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{"".join(body)}\n</body></html>\n'


def packaged(name: str) -> str:
    """A file of this package: the style, the script."""
    return resources.files(__package__).joinpath(name).read_text("utf-8")


def grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of HTML cells, the first of each row its head. It scrolls where a screen is too narrow for it."""
    heads = "".join(f"<th>{each}</th>" for each in head)
    body = "".join(f"<tr><th>{first}</th>{''.join(f'<td>{each}</td>' for each in rest)}</tr>" for first, *rest in rows)
    top = f"<thead><tr>{heads}</tr></thead>" if head else ""
    return f'<div class="wide"><table>{top}<tbody>{body}</tbody></table></div>'


def picture(png: bytes, alt: str) -> str:
    """A picture in the page itself."""
    return f'<p><img alt="{escape(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}"></p>'


def link(url: str, text: str) -> str:
    """A link, or the text alone where there is no address that a browser opens."""
    shown = escape(text)
    return f'<a href="{escape(url)}">{shown}</a>' if url.startswith(("http://", "https://")) else shown
