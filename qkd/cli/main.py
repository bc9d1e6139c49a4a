"""The command ``qkd``: its subcommands, and how errors become messages and exit codes."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import click

from qkd import __version__
from qkd.cli import allocate, bench, check, compare, eval, export, init, ls, report, sweep, train
from qkd.errors import QkdError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="qkd")
@click.option("-v", "--verbose", is_flag=True, help="Print the traceback of an error.")
def commands(verbose: bool) -> None:
    """Train a low-bit student together with low-bit teachers; export it as a verified integer ONNX file.

    \b
    qkd train recipes/digits_cmtkd_w2a2.yaml
    qkd export runs/digits_cmtkd_w2a2
    qkd bench runs/digits_cmtkd_w2a2
    """


for command in (
    train.train,
    sweep.sweep,
    export.export,
    bench.bench,
    eval.evaluate,
    report.report,
    compare.compare,
    check.check,
    check.explain,
    check.layers,
    ls.ls,
    allocate.allocate,
    init.init,
    init.schema,
    init.env,
):
    commands.add_command(command)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit. A known error is one line on stderr and its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    verbose = any(word in ("-v", "--verbose") for word in words)
    try:
        commands(words, prog_name="qkd", standalone_mode=False)
        code = 0
    except QkdError as error:
        code = _fail(str(error), error.exit_code, verbose)
    except click.ClickException as error:
        code = _fail(error.format_message(), 2, verbose)
    except (KeyboardInterrupt, click.Abort):
        code = _fail("interrupted", 130, verbose)
    except BrokenPipeError:
        code = 1
    except OSError as error:  # of the machine: a folder that is missing, a disk that is full
        where = f"{error.filename}: " if error.filename else ""
        code = _fail(f"{where}{(error.strerror or str(error)).lower()}", 1, verbose)
    except Exception as error:
        if found := _out_of_memory(error):
            sys.exit(_fail(found, 1, verbose))
        code = _fail(f"{type(error).__name__}: {error} (-v shows where; please report it with `qkd env`)", 1, verbose)
    sys.exit(code)


def _out_of_memory(error: Exception) -> str:
    """A message where the machine, or its device, has too little memory; empty for other errors."""
    words = (str(error) or type(error).__name__).splitlines()[0]
    out_of_memory = isinstance(error, MemoryError) or "allocate memory" in words or "out of memory" in words
    advice = "a smaller data.size or data.batch, data.memory: false or train.recompute: true take less"
    return f"too little memory: {words}; {advice}" if out_of_memory else ""


def _fail(message: str, code: int, verbose: bool) -> int:
    if verbose:
        traceback.print_exc()
    for line in message.splitlines():
        click.echo(f"error: {line}", err=True)
    return code
