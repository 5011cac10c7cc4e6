"""The Prefect and MLflow servers asked for one thing, and in a line why they do not answer or let nobody in."""

from __future__ import annotations

import base64
import http.client
import json
import os
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

from gptpipe.config.settings import is_address
from gptpipe.errors import UserError

_ANSWER_SECONDS = 10
_HEALTH = ("health", ("no health", "is it another server?"))


@dataclass(frozen=True)
class Server:
    """A server's API.

    Attributes:
        name: in what a person reads.
        url: below which all paths are.
        headers: that let this process in.
        credentials: the variables that hold what lets it in.
    """

    name: str
    url: str
    credentials: str
    headers: dict[str, str] = field(default_factory=dict, repr=False)

    def check(self) -> None:
        """A UserError unless it answers and lets this process in; what it has there is another matter."""
        try:
            self._get(*_HEALTH)
        except UserError as error:
            if error.message != _HEALTH[1][0]:
                raise

    def ask(self, path: str, *, absent: tuple[str, str] = ("there is nothing", "see its log")) -> Any:
        """The JSON, or else the text, that it has at a path.

        Args:
            absent: what a 404 means, and what to do then.

        Raises:
            UserError: it does not answer, does not let this process in, or has nothing there.
        """
        return self._get(path, absent)[0]

    def find(self, path: str, body: dict[str, Any]) -> Any:
        """What a POST to a path answers, as JSON; errors as for `ask`."""
        return self._get(path, ("there is nothing", "see its log"), json.dumps(body).encode())[0]

    def skew(self) -> float:
        """Seconds that this machine's clock is ahead of the server's; 0 if it does not tell the time."""
        told = self._get(*_HEALTH)[1].get("Date")
        return time.time() - parsedate_to_datetime(told).timestamp() if told else 0.0

    def _get(
        self, path: str, absent: tuple[str, str], body: bytes | None = None
    ) -> tuple[Any, http.client.HTTPMessage]:
        headers = {**self.headers, **({"Content-Type": "application/json"} if body is not None else {})}
        request = urllib.request.Request(f"{self.url}/{path}", data=body, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=_ANSWER_SECONDS) as reply:
                content = reply.read().decode()
                try:
                    return json.loads(content), reply.headers
                except ValueError:
                    return content, reply.headers
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):
                raise UserError(
                    f"the {self.name} server does not let this machine in ({error.code})",
                    where=self.credentials,
                    hint="set it as the server has it",
                ) from None
            if error.code == 404:
                raise UserError(absent[0], where=self.url, hint=absent[1]) from None
            raise UserError(
                f"the {self.name} server answers {error.code}", where=self.url, hint="see its log"
            ) from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise UserError(
                f"the {self.name} server does not answer: {error}", where=self.url, hint="start it, or fix the address"
            ) from None


def the_prefect_server() -> Server:
    """The one that PREFECT_API_URL names.

    Raises:
        UserError: it names none.
    """
    named = os.environ.get("PREFECT_API_URL", "")
    url = named.rstrip("/")
    if not url:
        raise UserError(
            "no Prefect server",
            where="PREFECT_API_URL",
            hint="set it, for example http://10.0.0.1:4200/api, or start one with `gptpipe up`",
        )
    if not is_address(url):
        raise UserError(
            "no address of a server", where=f"PREFECT_API_URL={named}", hint="it is like http://10.0.0.1:4200/api"
        )
    if key := os.environ.get("PREFECT_API_KEY"):
        return Server("Prefect", url, "PREFECT_API_KEY", {"Authorization": f"Bearer {key}"})
    return Server("Prefect", url, "PREFECT_API_AUTH_STRING", _basic(os.environ.get("PREFECT_API_AUTH_STRING", "")))


def the_mlflow_server(uri: str) -> Server:
    """The tracking server at an http:// or https:// address."""
    user, password = (os.environ.get(f"MLFLOW_TRACKING_{name}", "") for name in ("USERNAME", "PASSWORD"))
    credentials = "GPTPIPE_MLFLOW_AUTH"
    return Server("MLflow", uri.rstrip("/"), credentials, _basic(f"{user}:{password}" if user else ""))


def _basic(user_and_password: str) -> dict[str, str]:
    encoded = base64.b64encode(user_and_password.encode()).decode()
    return {"Authorization": f"Basic {encoded}"} if user_and_password else {}
