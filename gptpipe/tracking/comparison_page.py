"""Runs side by side as one page of HTML that needs nothing else: the sentence, the table, the losses."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape

from gptpipe.tracking.comparison import SideBySide
from gptpipe.tracking.plots import loss_curves

_STYLE = """
:root { color-scheme: light dark; --line: #8884; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .8rem .3rem 0; text-align: left; vertical-align: top; }
thead th { border-bottom-width: 2px; }
img { background: #fff; max-width: 100%; height: auto; }
@media print { body { margin: 0; max-width: none; } }
"""


def comparison_page(compared: SideBySide, curves: Mapping[str, Mapping[str, list[tuple[int, float]]]]) -> str:
    """The page.

    Args:
        curves: losses by tokens, of each run by its id.
    """
    names = {column.run_id: column.name for column in compared.columns}
    picture = base64.b64encode(loss_curves({names[run]: each for run, each in curves.items()})).decode()
    heads = "".join(f'<th><a href="{escape(each.url)}">{escape(each.name)}</a></th>' for each in compared.columns)
    rows = "".join(
        f"<tr><th>{escape(name)}</th>{''.join(f'<td>{escape(value)}</td>' for value in values)}</tr>"
        for name, values in compared.rows.items()
    )
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>Runs side by side</title><style>{_STYLE}</style>"
    body = f"<h1>{escape(compared.sentence)}</h1>"
    body += f'<div class="wide"><table><thead><tr><th></th>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
    body += f'<p><img alt="Losses by tokens" src="data:image/png;base64,{picture}"></p>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'
