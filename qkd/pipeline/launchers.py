"""Launchers: where the runs of a sweep are computed. Schedulers that exist already are asked; none is written here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from qkd.errors import UsageError
from qkd.options import require_extra

Where = Literal["local", "submitit", "ray"]
Launch = Callable[..., Any]  # (function, *arguments) -> what it returns, once it is done somewhere


def launcher_for(where: Where, folder: Path, settings: Sequence[str] = ()) -> Launch:
    """A function that computes ``function(*arguments)`` there and waits for it; many threads may call it.

    ``settings`` are ``key=value`` for the scheduler; ``folder`` is where it may keep its files. Raises UsageError where it
    is not installed or does not take a setting.
    """
    return LAUNCHERS[where](folder, _parsed(settings))


def _local(folder: Path, settings: dict[str, Any]) -> Launch:
    if settings:
        raise UsageError(f"--launch-with {next(iter(settings))}: only submitit and ray take settings")
    return lambda function, *arguments: function(*arguments)


def _submitit(folder: Path, settings: dict[str, Any]) -> Launch:
    """Slurm, where there is one; processes of this machine otherwise."""
    library = require_extra("submitit", "--launcher submitit")
    executor = library.AutoExecutor(folder=str(folder / "submitit"))
    with_ = {"timeout_min": 24 * 60, **settings}
    try:
        executor.update_parameters(**with_)
    except (NameError, TypeError, ValueError) as error:
        raise UsageError(f"--launch-with: submitit: {next(iter(str(error).splitlines()), '')}") from error
    return lambda function, *arguments: executor.submit(function, *arguments).result()


def _ray(folder: Path, settings: dict[str, Any]) -> Launch:
    """The Ray cluster that RAY_ADDRESS names, or one on this machine; ``num_cpus`` and ``num_gpus`` are those of a run."""
    library = require_extra("ray", "--launcher ray")
    library.init(ignore_reinit_error=True, log_to_driver=False)

    def launch(function: Callable[..., Any], *arguments: Any) -> Any:
        remote = library.remote(function)
        return library.get((remote.options(**settings) if settings else remote).remote(*arguments))

    return launch


LAUNCHERS: dict[str, Callable[[Path, dict[str, Any]], Launch]] = {"local": _local, "submitit": _submitit, "ray": _ray}


def _parsed(settings: Sequence[str]) -> dict[str, Any]:
    found = {}
    for setting in settings:
        key, sign, value = setting.partition("=")
        if not sign or not key.isidentifier():
            raise UsageError(f"--launch-with {setting}: expected KEY=VALUE, for example num_gpus=1")
        found[key] = _value(value)
    return found


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
