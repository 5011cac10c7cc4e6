"""The database of sweeps: how it is opened, and what it refuses, in one line."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gptpipe.errors import UserError, damaged_database, no_space
from gptpipe.storage.temporary import made_once

if TYPE_CHECKING:
    import optuna
    from sqlalchemy.engine import URL

_BUSY_SECONDS = 60  # for which SQLite waits for another writer
_TABLES_KEY = 0x677074706970650  # of PostgreSQL's lock; any number that nobody else uses


def open_study(name: str, uri: str) -> optuna.Study:
    """Optuna's study of that name, made when it is not there.

    Args:
        uri: of the database, as SQLAlchemy names it.
    """
    import optuna
    from sqlalchemy.engine import make_url

    quieten()
    url = make_url(uri)
    is_file = url.get_backend_name() == "sqlite"
    options = {"connect_args": {"timeout": _BUSY_SECONDS}} if is_file else {"pool_pre_ping": True}
    if is_file and url.database and url.database != ":memory:" and Path(url.database).parent.is_dir():
        with made_once(Path(url.database)) as partial:  # in several steps, after a kill between which Optuna refuses it
            if partial is not None:
                optuna.storages.RDBStorage(f"sqlite:///{partial}", engine_kwargs=options).engine.dispose()
    with _alone(url):
        database = optuna.storages.RDBStorage(uri, engine_kwargs=options)
    pruner = optuna.pruners.NopPruner()  # trials are stopped by `halving`
    return optuna.create_study(storage=database, study_name=name, load_if_exists=True, pruner=pruner)


@contextmanager
def _alone(url: URL) -> Iterator[None]:
    """Only one process at a time makes tables in a PostgreSQL database."""
    from sqlalchemy import create_engine, text

    if url.get_backend_name() != "postgresql":
        yield
        return
    engine = create_engine(url)
    try:
        with engine.begin() as connection:
            connection.execute(text("select pg_advisory_xact_lock(:key)"), {"key": _TABLES_KEY})
            yield
    finally:
        engine.dispose()


def quieten() -> None:
    """Optuna and its migrations say what they do, a line each."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """What a database refuses, in one line.

    Raises:
        UserError: it cannot be reached or used.
    """
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    try:
        check_address(uri)
        yield
    except (SQLAlchemyError, StorageInternalError, ImportError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "schema" not in str(error):
            raise
        try:
            place = make_url(uri).render_as_string(hide_password=True)
        except (SQLAlchemyError, ValueError):
            place = "its value"
        lines = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
        if "disk is full" in lines[0]:
            raise no_space(place) from error
        where = f"GPTPIPE_SWEEPS_URI, {place}"
        loss = "sweeps begin from the first trial, trainings are found again; or name another one, or leave it empty"
        if damaged := damaged_database(lines[0], where, loss):
            raise damaged from error
        raise UserError(
            f"the database of sweeps cannot be used: {lines[0][:300]}",
            where=where,
            hint="name a database that answers and is not MLflow's own, or leave it empty for SQLite",
        ) from error


def check_address(uri: str) -> None:
    """Hold a database's address against what SQLAlchemy takes; it leaves a port that is no number to Python to refuse.

    Raises:
        ArgumentError: it is none.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        make_url(uri)
    except ValueError as error:
        raise ArgumentError(str(error)) from None
