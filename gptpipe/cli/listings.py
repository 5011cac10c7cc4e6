"""`gptpipe corpora` and `presets`: what is built in."""

from __future__ import annotations

from typing import Any

from gptpipe.cli.options import Json, print_answer
from gptpipe.config import PRESETS, preset_summary, preset_values


def corpora(as_json: Json = False) -> None:
    """The corpora that are built in."""
    from gptpipe.corpus.sources import BUILT_IN

    rows = [
        {
            "url": url,
            "description": item.description,
            "files": (files := list(item.files())) and len(files),
            "megabytes": round(sum(f.size for f in files) / 1e6, 1),
        }
        for url, item in BUILT_IN.items()
    ]
    text = "\n".join(
        f"{row['url']:10} {row['description']} (here {row['files']:,} files, {row['megabytes']} MB)" for row in rows
    )
    print_answer({"corpora": rows}, as_json, text)


def presets(as_json: Json = False) -> None:
    """The presets and what is in them."""
    rows = [{"name": name, "description": preset_summary(name), "values": preset_values(name)} for name in PRESETS]
    text = "\n\n".join(f"{row['name']:11} {row['description']}\n            {_flat(row['values'])}" for row in rows)
    print_answer({"presets": rows}, as_json, text)


def _flat(values: Any) -> str:
    return "  ".join(f"{section}.{key}={value}" for section, keys in values.items() for key, value in keys.items())
