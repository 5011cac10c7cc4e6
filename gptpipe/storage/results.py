"""Results that are kept as JSON, each with a digest of itself: one that is damaged is told, and made again."""

from __future__ import annotations

import logging
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from gptpipe.config import digest
from gptpipe.errors import Damaged
from gptpipe.storage.objects import read_json, write_json

T = TypeVar("T")
DIGEST = "sha256"  # a key in a result, of all its other keys

log = logging.getLogger(__name__)


def with_digest(values: dict[str, Any]) -> dict[str, Any]:
    """These values, of JSON's types, and their digest."""
    return {**values, DIGEST: digest(values)}


def is_as_written(values: dict[str, Any]) -> bool:
    """Whether what was read is what its digest says."""
    return values.get(DIGEST) == digest({key: value for key, value in values.items() if key != DIGEST})


def write_result(url: str, values: dict[str, Any]) -> None:
    """Keep values of JSON's types."""
    write_json(url, with_digest(values))


def read_result(url: str, kind: TypeAdapter[T]) -> T | None:
    """What is kept at a URL, as a dataclass or model; None where nothing is, or nothing that can be relied on."""
    try:
        values = read_json(url)
        if not is_as_written(values):
            raise Damaged("it is not what its digest says")
        return kind.validate_python({key: value for key, value in values.items() if key != DIGEST})
    except FileNotFoundError:
        return None
    except ValidationError as error:
        log.warning("%s: of another version (%s), and is made again", url, error.errors()[0]["msg"])
    except Damaged as error:
        log.warning("%s: damaged, and is made again: %s", url, error.message)
    return None
