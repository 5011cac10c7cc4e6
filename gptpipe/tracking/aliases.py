"""Aliases that a person moves: a version that waits is approved or refused, an earlier one is champion again."""

from __future__ import annotations

import re
from dataclasses import replace

from gptpipe.config import PromoteConfig
from gptpipe.errors import UserError
from gptpipe.tracking.client import Tracking
from gptpipe.tracking.moves import (
    APPROVAL,
    DECISION_TAG,
    NOBODY,
    PREVIOUS,
    REFUSED_TAG,
    ROLLBACK,
    WAITS_TAG,
    Move,
    begin_description,
    champion_number,
    finish,
    version_called,
)
from gptpipe.tracking.promote import Decision
from gptpipe.tracking.registry import WAITS, Registered, decision_of

_ANSWER = re.compile(r"^(approved|refused) by a person( \(.*?\))?: ")


class ChampionChanged(UserError):
    """Another version became champion after the comparison that was to be approved."""


def answer(promote: PromoteConfig, tracking: Tracking, number: str, *, agreed: bool, note: str = "") -> Registered:
    """Make a version that waits champion, or refuse it. One that was refused may still be agreed to.

    Args:
        number: of the version. note: why, kept with the decision.

    Raises:
        ChampionChanged: it was compared with a version that is not champion any more.
        UserError: there is no such version, or it waits for nobody.
    """
    from mlflow.exceptions import MlflowException

    name = promote.model_name
    with tracking.moving(name) as client:
        finished = finish(client, promote)
        if agreed and finished and (finished.kind, finished.after) == (APPROVAL, number):
            decision = decision_of(client.get_model_version(name, number))
            return Registered(tracking, name, number, decision.settled(True, finished.reason))
        try:
            version = client.get_model_version(name, number)
        except MlflowException as error:
            hint = "give the number of a version that waits"
            raise UserError(error.message, where=f"{name} version {number}", hint=hint) from None
        where = f"{name} version {version.version}"
        compared = version.tags.get(WAITS_TAG) or (version.tags.get(REFUSED_TAG) if agreed else None)
        if compared is None:
            hint = (
                "only a better model waits, where promote.approval_hours is set; `gptpipe rollback --to` moves others"
            )
            raise UserError("waits for nobody's approval", where=where, hint=hint)
        now = champion_number(client, promote)
        if (now or NOBODY) != compared:
            raise ChampionChanged(
                f"was compared with version {compared}, but version {now or NOBODY} is {promote.alias} by now",
                where=where,
                hint="start the same retraining again: only the comparison is made again",
            )
        decision = decision_of(version)
        reason = _ANSWER.sub("", decision.reason.removeprefix(WAITS))
        said = f"{'approved' if agreed else 'refused'} by a person{f' ({note})' if note else ''}: "
        if agreed:
            Move(APPROVAL, now, str(version.version), f"{said}{reason}").make(client, promote)
        else:
            client.set_model_version_tag(name, version.version, REFUSED_TAG, compared)
            client.set_model_version_tag(name, version.version, DECISION_TAG, f"{said}{reason}")
            begin_description(client, version, f"{said}{reason}")
            client.delete_model_version_tag(name, version.version, WAITS_TAG)  # last: until then it may be said again
        return Registered(tracking, name, str(version.version), decision.settled(agreed, f"{said}{reason}"))


def settled(promote: PromoteConfig, registered: Registered) -> Registered:
    """A version that waited, after the question: as a person has settled it meanwhile, wherever that was done.

    It is unchanged where nobody has.
    """
    with registered.tracking.reached() as client:
        version = client.get_model_version(registered.name, registered.version)
        is_champion = champion_number(client, promote) == registered.version
    if WAITS_TAG in version.tags and not is_champion:
        return registered
    reason = decision_of(version).reason.removeprefix(WAITS)
    return replace(registered, decision=registered.decision.settled(is_champion, reason), waits=False)


def rollback(promote: PromoteConfig, tracking: Tracking, to: str = "") -> tuple[str, Registered]:
    """Make an earlier version champion again; the number of the version that was it, and the version that is.

    The version that goes does not become champion again by itself, however often its training is asked for.

    Args:
        to: number of the version; empty is the one that was champion before.

    Raises:
        UserError: no such model or version, or none that was champion before.
    """
    from mlflow.exceptions import MlflowException

    name = promote.model_name
    with tracking.moving(name) as client:
        finished = finish(client, promote)
        if finished and finished.kind == ROLLBACK and to in ("", finished.after):
            return finished.before, Registered(tracking, name, finished.after, Decision(True, finished.reason))
        champion = version_called(client, name, promote.alias)
        if champion is None:
            raise UserError(f"no version is {promote.alias}", where=name, hint="see the registered models in MLflow")
        try:
            version = client.get_model_version(name, to) if to else version_called(client, name, PREVIOUS)
        except MlflowException as error:
            raise UserError(error.message, where=f"{name} version {to}", hint="give the number of a version") from None
        if version is None:
            raise UserError(f"no version was {promote.alias} before", where=name, hint="name the version: --to VERSION")
        if version.version == champion.version:
            raise UserError(f"version {version.version} is {promote.alias} already", where=name, hint="nothing to do")
        reason = f"{promote.alias} again by a rollback from version {champion.version}"
        Move(ROLLBACK, str(champion.version), str(version.version), reason).make(client, promote)
    return str(champion.version), Registered(tracking, name, str(version.version), Decision(True, reason))
