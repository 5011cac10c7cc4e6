"""Repositories of the Hugging Face hub, fetched into its own cache."""

from __future__ import annotations

from gptpipe.errors import UserError
from gptpipe.extras import install_hint
from gptpipe.wording import first_line

HUB = "hf:"


def from_hub(reference: str, patterns: list[str]) -> str:
    """Fetch files of a repository into the hub's cache, with its progress bar, resumed and verified there.

    Args:
        reference: `hf:OWNER/NAME`.
        patterns: names of files, with `*`.

    Returns:
        The local folder that holds them.

    Raises:
        UserError: the hub's client is not installed, or they cannot be fetched.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError:
        raise UserError("the hub's client is not installed", where=reference, hint=install_hint("hf")) from None
    try:
        return str(snapshot_download(reference.removeprefix(HUB).strip("/"), allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        hint = "see https://huggingface.co for the name, as owner/name"
        raise UserError(f"cannot be fetched: {first_line(error)}", where=reference, hint=hint) from None
