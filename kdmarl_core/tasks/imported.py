"""Environments that others wrote, named by where Python finds them.

What stands in a task's name after its family: `<module>[:<callable>][?<option>=<value>&...]`. The
options are keyword arguments of the callable, their values YAML.
"""

import copy
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from kdmarl_core.errors import UserError, did_you_mean
from kdmarl_core.schema import parse_yaml
from kdmarl_core.tasks.task import Booleans

T = TypeVar("T")


def split_options(name: str, where: str) -> tuple[str, dict[str, Any]]:
    """What stands before the question mark, and the options behind it.

    Raises:
        UserError: an option is not `name=value`, stands twice, or its value is not YAML.
    """
    path, mark, text = name.partition("?")
    options: dict[str, Any] = {}
    for item in text.split("&") if mark else []:
        key, equals, value = item.partition("=")
        if not (equals and key.isidentifier()):
            raise UserError(f"{where}: option '{item}' is not 'name=value'; write ?a=1&b=2")
        if key in options:
            raise UserError(f"{where}: option '{key}' stands twice; give it once")
        try:
            options[key] = parse_yaml(value)
        except ValueError:
            raise UserError(
                f"{where}: option '{key}': '{value}' is not YAML; correct it"
            ) from None
    return path, options


def import_callable(path: str, default: str, where: str) -> Callable[..., Any]:
    """What `module:callable` names; `default` is the callable's name where none is given.

    Raises:
        UserError: there is no such module, it cannot be imported, or it lacks the callable.
    """
    module_name, _, callable_name = path.partition(":")
    if not all(part.isidentifier() for part in module_name.split(".")):
        raise UserError(f"{where}: '{module_name}' is no module; write package.module")
    module = import_module(module_name, where)
    found = getattr(module, callable_name or default, None)
    if not callable(found):
        raise UserError(
            f"{where}: {module_name} has no callable '{callable_name or default}'; choose another "
            f"module, or name what makes the environment: {module_name}:<callable>"
        )
    return found  # type: ignore[no-any-return]


def import_module(name: str, where: str) -> Any:
    """The module of that name.

    Raises:
        UserError: it, or what it imports, is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            needed = f"'{error.name}'" if error.name else str(error)
            raise UserError(
                f"{where}: {name} needs {needed}, which is not installed; "
                "pip install the package that has it"
            ) from None
        beside = _modules_beside(name)
        remedy = did_you_mean(name, beside) if beside else "pip install the package that has it"
        raise UserError(f"{where}: no module '{error.name}'; {remedy}") from None
    except ImportError as error:
        raise UserError(f"{where}: {name} cannot be imported ({error}); mend it") from None


def construct(
    factory: Callable[..., Any], options: Mapping[str, Any], where: str, **more: Any
) -> Any:
    """A new environment.

    Raises:
        UserError: the environment does not like its options.
    """
    # A copy: some environments write into their options.
    made = {**more, **copy.deepcopy(dict(options))}
    return _tried(lambda: factory(**made), where, "made", "correct its options")


def first_use(call: Callable[[], T], where: str) -> T:
    """What a new environment answers when it is used for the first time.

    Raises:
        UserError: it fails, for want of a display, of data, or of what it does not say.
    """
    return _tried(call, where, "played", "see what it needs")


def takes(name: str, function: Callable[..., Any]) -> bool:
    """Whether a function has a parameter of that name; some built-in ones do not tell."""
    try:
        return name in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def legal_mask(flags: Any) -> Booleans:
    """An agent's own actions, whether each is legal; at least one always is, if only the first."""
    mask = np.array(flags, np.bool_).ravel()
    mask[0] |= not mask.any()
    return mask


def legal_action(action: int, mask: Booleans) -> int:
    """The action or, in its stead, the first legal one: an environment may fail at others.

    A robot that was lost sends its safe action, whatever is legal.
    """
    return action if mask[action] else int(mask.argmax())


def _tried(call: Callable[[], T], where: str, doing: str, remedy: str) -> T:
    try:
        return call()
    except UserError:
        raise
    except Exception as error:  # whatever the environment raises
        raise UserError(
            f"{where}: cannot be {doing} ({type(error).__name__}: {error}); {remedy}"
        ) from error


def _modules_beside(name: str) -> list[str]:
    """The modules of the package in which one was looked for in vain."""
    package = name.rpartition(".")[0]
    folders = getattr(sys.modules.get(package), "__path__", [])
    return [f"{package}.{module.name}" for module in pkgutil.iter_modules(folders)]
