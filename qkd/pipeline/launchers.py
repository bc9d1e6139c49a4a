"""Computes the runs of a sweep in this process, on Slurm (submitit) or on a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from qkd.errors import UsageError
from qkd.options import require_extra

Launch = Callable[..., Any]  # (function, *arguments) -> what the function returns, once it has run


def launcher_for(name: str, folder: Path, settings: Sequence[str] = ()) -> Launch:
    """The launcher of a name of ``LAUNCHERS``: it computes ``function(*arguments)`` and waits for the result.

    Threads may call it at the same time. ``settings`` are ``key=value`` for the scheduler; ``folder`` is where the scheduler
    may write its files. Raises UsageError where it is not installed or does not accept a setting.
    """
    return LAUNCHERS[name](folder, _parsed(settings))


def _local(folder: Path, settings: dict[str, Any]) -> Launch:
    if settings:
        raise UsageError(
            f"--launch-with {next(iter(settings))}: only submitit and ray take settings", key="launcher.no-settings"
        )
    return lambda function, *arguments: function(*arguments)


def _submitit(folder: Path, settings: dict[str, Any]) -> Launch:
    """Slurm, where there is one; processes of this machine otherwise."""
    library = require_extra("submitit", "--launcher submitit")
    executor = library.AutoExecutor(folder=str(folder / "submitit"))
    parameters = {"timeout_min": 24 * 60, **settings}
    try:
        executor.update_parameters(**parameters)
    except (NameError, TypeError, ValueError) as error:
        words = next(iter(str(error).splitlines()), "")
        raise UsageError(f"--launch-with: submitit: {words}", key="launcher.refused-setting") from error
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
            raise UsageError(
                f"--launch-with {setting}: expected KEY=VALUE, for example num_gpus=1", key="launcher.no-key-value"
            )
        found[key] = _value(value)
    return found


def _value(text: str) -> Any:
    """The text as an int or a float where it is one."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
