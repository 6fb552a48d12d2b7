"""The train function on its way to the workers: pickled once, and where that fails, saying because of what."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cloudpickle

from elastic_train.errors import ConfigurationError

_MAX_DEPTH = 8
_PICKLING_ERRORS = (TypeError, AttributeError, ValueError, RecursionError, NotImplementedError, RuntimeError, OSError)
"""What `__reduce__` methods in the wild raise besides PicklingError to say that they cannot."""


def accepts_config(train: Callable[..., Any]) -> bool:
    """Return whether `train` takes the config as its argument, False if it takes none.

    Raises:
        ConfigurationError: It is no function, is a coroutine function, or needs other arguments than one.
    """
    if not callable(train):
        raise ConfigurationError(
            "train", f"{train!r} is not a function", "Pass the function itself: ElasticTrainer(train)"
        )
    if inspect.iscoroutinefunction(train) or inspect.isgeneratorfunction(train) or inspect.isasyncgenfunction(train):
        raise ConfigurationError(
            "train", f"{_name(train)} is a coroutine or generator function", "Write a plain function: def train(config)"
        )
    try:
        signature = inspect.signature(train)
    except ValueError:  # a builtin without a signature
        return True
    for arguments, answer in (((None,), True), ((), False)):
        try:
            signature.bind(*arguments)
        except TypeError:
            continue
        return answer
    raise ConfigurationError(
        "train",
        f"{_name(train)}{signature} cannot be called with the config, nor with nothing",
        "Write def train(config), or def train(); bind other arguments with functools.partial",
    )


def dump_payload(train: Callable[..., Any], config: Any) -> bytes:
    """Pickle the train function and its config for the workers.

    Raises:
        ConfigurationError: Something in them cannot be pickled; the message names the object and the way to it.
    """
    takes_config = accepts_config(train)
    if config is not None and not takes_config:
        raise ConfigurationError(
            "config", f"is given, but {_name(train)}() takes no argument", "Write def train(config), or leave it out"
        )
    payload = {"train": train, "config": config, "takes_config": takes_config}
    try:
        return bytes(cloudpickle.dumps(payload))
    except (cloudpickle.pickle.PicklingError, *_PICKLING_ERRORS) as error:
        parameter = "train" if _problem(train) is not None else "config"
        way, culprit = _find_culprit(payload[parameter])
        raise ConfigurationError(
            parameter,
            f"{' → '.join((_name(train) if parameter == 'train' else 'config', *way))} is "
            f"{_describe(culprit)}, which cannot be sent to the workers ({error})",
            "Create it inside the train function, or pass in config what is needed to create it",
        ) from error


def load_payload(path: Path) -> Callable[[], Any]:
    """Return the train function, bound to its config, from the file that the driver wrote for this very run."""
    payload = cloudpickle.loads(path.read_bytes())
    train: Callable[..., Any] = payload["train"]
    return functools.partial(train, payload["config"]) if payload["takes_config"] else train


def _problem(value: object) -> Exception | None:
    try:
        cloudpickle.dumps(value)
    except (cloudpickle.pickle.PicklingError, *_PICKLING_ERRORS) as error:
        return error
    return None


def _find_culprit(root: object) -> tuple[list[str], object]:
    """Descend to an object that cannot be pickled though all of its parts can (depth first, each object once)."""
    way: list[str] = []
    culprit = root
    seen = {id(root)}
    for _ in range(_MAX_DEPTH):
        for label, part in _parts(culprit):
            if id(part) not in seen and _problem(part) is not None:
                seen.add(id(part))
                way.append(label)
                culprit = part
                break
        else:
            break
    return way, culprit


def _parts(value: object) -> Iterator[tuple[str, object]]:
    """Yield what pickling `value` would pickle with it, each with words for where it stands."""
    if isinstance(value, functools.partial):
        yield "the wrapped function", value.func
        yield from ((f"argument {index}", part) for index, part in enumerate(value.args))
        yield from ((f"argument {name}", part) for name, part in value.keywords.items())
    elif isinstance(value, types.MethodType):
        yield "the object it is a method of", value.__self__
        yield "the method", value.__func__
    elif isinstance(value, types.FunctionType):
        yield from _function_parts(value)
    elif isinstance(value, Mapping):
        yield from ((f"[{key!r}]", part) for key, part in value.items())
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((f"[{index}]", part) for index, part in enumerate(value))
    elif isinstance(value, type):
        yield from ((f"class attribute .{name}", part) for name, part in vars(value).items() if callable(part))
    else:
        yield from ((f"attribute .{name}", part) for name, part in getattr(value, "__dict__", {}).items())


def _function_parts(function: types.FunctionType) -> Iterator[tuple[str, object]]:
    variables = inspect.getclosurevars(function)
    yield from ((f"closure variable {name!r}", part) for name, part in variables.nonlocals.items())
    yield from ((f"global variable {name!r}", part) for name, part in _used_globals(function).items())
    yield from ((f"default argument {index}", part) for index, part in enumerate(function.__defaults__ or ()))
    yield from ((f"default of {name!r}", part) for name, part in (function.__kwdefaults__ or {}).items())


def _used_globals(function: types.FunctionType) -> dict[str, object]:
    """Return the globals that the function or a function written inside it refers to."""
    names: set[str] = set()
    pending = [function.__code__]
    while pending:
        code = pending.pop()
        names.update(code.co_names)
        pending.extend(constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return {name: function.__globals__[name] for name in sorted(names) if name in function.__globals__}


def _name(function: object) -> str:
    if isinstance(function, functools.partial):
        return _name(function.func)
    return getattr(function, "__qualname__", None) or repr(function)


def _describe(value: object) -> str:
    kind = type(value)
    text = repr(value)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return f"a {name}: {text if len(text) <= 80 else text[:77] + '...'}"
