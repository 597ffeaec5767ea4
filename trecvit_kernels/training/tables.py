"""From tables of a configuration file to dataclasses: unknown keys and wrong types are refused by name."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


class ConfigError(ValueError):
    """A configuration that cannot be right; the message names the key, what was expected and what came."""


def read_file(path: str | Path) -> dict[str, Any]:
    """The tables of a .toml or .json file.

    Raises:
        FileNotFoundError: there is no such file. ConfigError: it is not TOML or JSON. ImportError: TOML on Python 3.10
        without the package ``tomli`` (newer Pythons read it themselves).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such configuration file: {path}")
    if path.suffix not in (".toml", ".json"):
        raise ConfigError(
            f"{path}: a configuration must be a .toml or .json file, got {path.suffix or 'no suffix'}"
        )
    loads = json.loads if path.suffix == ".json" else _toml().loads
    try:
        tables = loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # both parsers' errors, and bytes that are no UTF-8
        raise ConfigError(f"{path}: not {path.suffix[1:].upper()}: {error}") from error
    if not isinstance(tables, dict):
        raise ConfigError(f"{path}: must hold tables, got {_kind(tables)}")
    return tables


def _toml() -> Any:
    for name in ("tomllib", "tomli"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise ImportError(
        "reading TOML on Python 3.10 needs tomli: pip install tomli, or give a .json file", name="tomli"
    )


def override(tables: dict[str, Any], assignment: str) -> None:
    """Apply ``section.key=value`` in place; the value is JSON, or else text."""
    key, equals, text = assignment.partition("=")
    names = key.strip().split(".")
    if not equals or len(names) < 2 or not all(names):
        raise ConfigError(f"--set must be section.key=value, got {assignment!r}")
    try:
        value = json.loads(text)
    except ValueError:
        value = text.strip()
    for depth, name in enumerate(names[:-1], start=1):
        tables = tables.setdefault(name, {})
        if not isinstance(tables, dict):
            raise ConfigError(f"--set {assignment}: {'.'.join(names[:depth])} is no section")
    tables[names[-1]] = value


def build(cls: type[T], table: object, where: str) -> T:
    """An instance of a dataclass from the keys of a table; lists become tuples, nested tables nested dataclasses.

    Raises:
        ConfigError: unknown or missing keys, or a value of another type than the field's annotation says. What the
        dataclass itself refuses comes as its own TypeError or ValueError.
    """
    if not isinstance(table, dict):
        raise ConfigError(f"{where} must be a table, got {_kind(table)}")
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    if unknown := sorted(set(table) - set(fields)):
        raise ConfigError(f"{where}: unknown key {', '.join(unknown)}; known are {', '.join(fields)}")
    missing = [name for name, field in fields.items() if name not in table and _required(field)]
    if missing:
        raise ConfigError(f"{where}: {', '.join(missing)} must be given")
    hints = typing.get_type_hints(cls)
    return cls(**{name: _convert(f"{where}.{name}", hints[name], value) for name, value in table.items()})


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _convert(where: str, hint: Any, value: Any) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(where, args, value)
    if origin is typing.Literal:
        if value not in args or isinstance(value, bool):
            raise ConfigError(f"{where} must be one of {', '.join(map(str, args))}, got {value!r}")
        return value
    if origin is tuple:
        return _convert_tuple(where, args, value)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return value if isinstance(value, hint) else build(hint, value, where)
    expected = origin or hint
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if expected is Path and isinstance(value, str):
        return Path(value)
    if isinstance(expected, type) and expected is not object:
        if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
            raise ConfigError(f"{where} must be {_say(hint)}, got {_kind(value)} {value!r}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{where} must be finite, got {value}")
    return value


def _convert_union(where: str, args: tuple[Any, ...], value: Any) -> Any:
    if value is None and types.NoneType in args:
        return None
    choices = [arg for arg in args if arg is not types.NoneType]
    for choice in choices:
        try:
            return _convert(where, choice, value)
        except ConfigError:
            if len(choices) == 1:
                raise
    raise ConfigError(f"{where} must be {' or '.join(map(_say, choices))}, got {_kind(value)} {value!r}")


def _convert_tuple(where: str, args: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
    endless = len(args) == 2 and args[1] is Ellipsis
    if not isinstance(value, (list, tuple)):
        if endless or args != (int, int):
            raise ConfigError(f"{where} must be a list, got {_kind(value)} {value!r}")
        value = [value, value]  # one number for height and width
    if not endless and len(value) != len(args):
        raise ConfigError(f"{where} must have {len(args)} entries, got {len(value)}")
    hints = [args[0]] * len(value) if endless else args
    return tuple(_convert(f"{where}[{i}]", hint, entry) for i, (hint, entry) in enumerate(zip(hints, value)))


def _say(hint: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", dict: "a table"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def _kind(value: object) -> str:
    return {dict: "a table", list: "a list", str: "text", type(None): "nothing"}.get(
        type(value), type(value).__name__
    )
