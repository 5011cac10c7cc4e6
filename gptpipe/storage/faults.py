"""What storage layers raise, turned into one line that says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gptpipe.errors import UserError, of_the_place
from gptpipe.storage.urls import is_local

# packages whose exceptions mean that a server is away or refuses
_CLIENTS = frozenset(
    [
        "botocore",
        "aiobotocore",
        "aiohttp",
        "huggingface_hub",
        "httpx",
        "httpx2",
        "httpcore",
        "httpcore2",
        "requests",
        "urllib3",
    ]
)


@contextmanager
def explained(url: str, *, writing: bool = False) -> Iterator[None]:
    """Turn what a storage layer raises into one line that says what to do."""
    try:
        yield
    except FileNotFoundError as error:
        if writing and not is_local(url):
            raise UserError(
                f"nothing can be written there ({error})", where=url, hint="create the bucket first"
            ) from None
        cause = error.__cause__
        if url.startswith("http") and cause is not None and getattr(cause, "status", None) != 404:
            raise _no_answer(url, cause) from error  # fsspec calls whatever went wrong a file that is not there
        raise
    except (UserError, FileExistsError):
        raise
    except PermissionError as error:
        hint = (
            "check the permissions of the path"
            if is_local(url)
            else "check GPTPIPE_S3_ACCESS_KEY and GPTPIPE_S3_SECRET_KEY, and that they may use this bucket"
        )
        raise UserError(f"access refused ({error})", where=url, hint=hint) from error
    except OSError as error:
        if problem := of_the_place(error, url):
            raise problem from error
        if not is_local(url):
            raise _no_answer(url, error) from error
        raise
    except Exception as error:
        kind = type(error).__name__
        if kind in ("NoCredentialsError", "PartialCredentialsError", "NoAuthTokenError"):
            raise UserError(
                "no S3 credentials",
                where=url,
                hint="set GPTPIPE_S3_ACCESS_KEY and GPTPIPE_S3_SECRET_KEY (or the usual AWS variables)",
            ) from error
        if type(error).__module__.split(".")[0] in _CLIENTS and not is_local(url):
            raise _no_answer(url, error) from error
        raise


def _no_answer(url: str, error: BaseException) -> UserError:
    if not url.startswith("s3"):
        return UserError(f"the server did not answer ({error})", where=url, hint="check the URL and the network")
    return UserError(
        f"the object store did not answer as expected ({error})",
        where=url,
        hint="check GPTPIPE_S3_ENDPOINT and the bucket; `gptpipe doctor` tries both",
    )
