"""`gptpipe`, the command. Exit codes: 0 done, 2 what was given is wrong, 75 stopped resumable, 1 anything else."""

from __future__ import annotations

import atexit
import json
import logging
import os
import signal
import sys
import threading
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import psutil
import typer

from gptpipe.cli.app import app
from gptpipe.cli.terminal import drop_unwritten, open_what_is_closed, show_what_it_can
from gptpipe.config.settings import prepare_environment, settings
from gptpipe.errors import EXIT_FAILED, EXIT_RESUMABLE, EXIT_USER_ERROR, Preempted, UserError, of_the_place
from gptpipe.progress import show_on_console
from gptpipe.startup import import_quickly
from gptpipe.wording import visible

# the base of what a wrong command line raises; typer carries its own click and exports only the leaves
UsageError: type[Any] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

log = logging.getLogger(__name__)

_INTERRUPTED = 130  # what typer makes of Ctrl-C


def main() -> NoReturn:
    """The console script's entry: what `run` does, and then the end of the process.

    Threads of native libraries, those of Arrow's pools, are still there when a command is done, and Python cannot end
    them. Taking the interpreter apart under them ended some commands with "terminate called without an active
    exception". So threads of Python's own are waited for and everything that is registered for the end is done, but
    nothing is taken apart.
    """
    code: Any = EXIT_FAILED
    try:
        signal.signal(signal.SIGTERM, _interrupt)
        run()
    except SystemExit as ended:
        code = ended.code
    except KeyboardInterrupt:  # before there was anything to stop
        code = EXIT_RESUMABLE
    with suppress(KeyboardInterrupt):  # who cannot wait for the farewells need not
        try:
            threading._shutdown()  # type: ignore[attr-defined]
        except OSError:  # a pool of processes was told to end through a pipe that its own thread was just closing
            threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code if isinstance(code, int) else EXIT_FAILED if code else 0)


def run() -> None:
    """Do what the command line says; ends with SystemExit."""
    import_quickly()
    wants_json = "--json" in sys.argv
    code = EXIT_FAILED
    open_what_is_closed()
    show_what_it_can()
    try:
        _check_folder()
        prepare_environment()
        show_on_console(settings().log_level)
        code = _called() or 0
        if code == _INTERRUPTED:
            raise KeyboardInterrupt
    except UserError as error:
        code = EXIT_USER_ERROR
        _fail(error.as_dict(), str(error), wants_json)
    except UsageError as error:
        code = EXIT_USER_ERROR
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message())
            sys.exit(code)
        message = error.format_message().rstrip(".").replace("\n", " ")
        context = getattr(error, "ctx", None)
        where = context.command_path if context else "gptpipe"
        hint = f"see `{where} --help`"
        if "unexpected extra argument" in message:
            hint = "write --set before every key=value" if "=" in message else "write the option before every value"
        elif where == "gptpipe" and "such option: --" in message:
            hint = "options come after the command: gptpipe COMMAND --json"
        _fail({"message": message, "where": where, "hint": hint}, f"{where}: {message} — {hint}", wants_json)
    except Preempted as stopped:
        code = EXIT_RESUMABLE
        _fail(
            {"message": str(stopped), "where": "train", "hint": "run the same command again"},
            str(stopped),
            wants_json,
        )
    except (typer.Abort, KeyboardInterrupt):
        hint = "run the same command again: what is done is not done again"
        _fail({"message": "stopped", "where": "", "hint": hint}, f"stopped — {hint}", wants_json)
        _leave_at_once(EXIT_RESUMABLE)
    except BaseException as error:
        cause = error.__context__ if isinstance(error, SystemExit) else error  # typer leaves when nobody reads on
        if isinstance(cause, BrokenPipeError):
            drop_unwritten()
        elif type(error).__name__ in ("Cancelled", "CancelledRun", "TerminationSignal"):
            _fail(
                {"message": str(error), "where": "train", "hint": "run again to go on"},
                str(error),
                wants_json,
            )
            _leave_at_once(EXIT_RESUMABLE)
        else:
            details = getattr(error, "details", "") or traceback.format_exc()
            sys.stderr.write(f"{details.rstrip()}\n")
            hint = "run the same command again: what is done is not done again"
            _fail(
                {"message": f"{type(error).__name__}: {error}", "where": "gptpipe", "hint": hint},
                f"failed: {error} — {hint}",
                wants_json,
            )
    drop_unwritten()
    sys.exit(code)


def _called() -> Any:
    """What the command returns. Where a file or folder that it was given cannot be used, that is no fault of ours."""
    try:
        return app(standalone_mode=False)
    except OSError as error:
        if (problem := of_the_place(error)) is None:
            raise
        raise problem from error


def _interrupt(*_: object) -> NoReturn:
    """SIGTERM, outside of a training, which saves first: the end that Ctrl-C makes, in place of a silent one."""
    raise KeyboardInterrupt


def _check_folder() -> None:
    try:
        Path.cwd()
    except OSError as error:
        raise UserError(
            f"cannot be used ({error.strerror})", where="the current folder", hint="change to one that is there"
        ) from None


def _leave_at_once(code: int) -> NoReturn:
    """End without Prefect's farewells: its in-process server takes up to ten seconds to stop by itself."""
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            child.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _fail(error: dict[str, str], line: str, wants_json: bool) -> None:
    if wants_json:
        with suppress(OSError):  # the line for a person follows
            print(json.dumps({"error": error}), flush=True)
    shown = visible(line)
    sys.stderr.write(f"error: {shown}\n" if error["message"] != line else f"{shown}\n")
