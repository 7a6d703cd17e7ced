"""Strict JSON forms of dataclasses: unknown or missing keys and wrong types raise an error."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

from wavenet.errors import ConfigError

_Config = TypeVar("_Config", bound="JsonConfig")


def accepts(annotation: Any, value: Any) -> bool:
    """Return whether a JSON value has the annotated type; an int is a valid float, a bool is not a number."""
    if isinstance(annotation, types.UnionType):
        return any(accepts(option, value) for option in typing.get_args(annotation))
    if annotation is type(None):
        return value is None
    if annotation is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if typing.get_origin(annotation) is tuple:
        return isinstance(value, (list, tuple)) and all(
            accepts(typing.get_args(annotation)[0], each) for each in value
        )
    if isinstance(annotation, type) and issubclass(annotation, JsonConfig):
        return isinstance(value, dict)
    return isinstance(value, annotation)


def _convert(annotation: Any, value: Any) -> Any:
    """Convert an accepted JSON value to the annotated type: a tuple, or a nested configuration."""
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, dict):
        for option in typing.get_args(annotation) or (annotation,):
            if issubclass(option, JsonConfig):
                return option.from_json(value)
    return value


def refuse_unknown(values: dict[str, Any], names: Sequence[str], where: str) -> None:
    """Raise `ConfigError` for the first key that is not in `names`, with the closest known key."""
    for key in values:
        if key not in names:
            close = difflib.get_close_matches(str(key), names, 1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; known keys: {', '.join(names)}"
            raise ConfigError(f"{where}: unknown key {key!r}{hint}")


class JsonConfig:
    """Base of dataclasses with a strict conversion to and from JSON objects."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a JSON object (a dict of plain values)."""
        return dataclasses.asdict(self)  # type: ignore[call-overload]

    @classmethod
    def from_json(cls: type[_Config], values: Any) -> _Config:
        """Build the configuration from a JSON object.

        Raises `ConfigError` with the key if one is unknown, missing, or of the wrong type.
        """
        if not isinstance(values, dict):
            raise ConfigError(f"{cls.__name__}: expected a JSON object, found {type(values).__name__}")
        annotations = typing.get_type_hints(cls)
        names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
        refuse_unknown(values, names, cls.__name__)
        for name in names:
            if name not in values:
                raise ConfigError(f"{cls.__name__}: key {name!r} is missing")
            if not accepts(annotations[name], values[name]):
                raise ConfigError(f"{cls.__name__}: {name} = {values[name]!r} has the wrong type")
        return cls(**{name: _convert(annotations[name], value) for name, value in values.items()})

    def _require(self, ok: bool, name: str, expected: str) -> None:
        if not ok:
            raise ConfigError(f"{name} = {getattr(self, name)!r}: must be {expected}")

    def _require_int(self, name: str, low: int, high: int) -> None:
        value = getattr(self, name)
        whole = isinstance(value, int) and not isinstance(value, bool)
        self._require(whole and low <= value <= high, name, f"a whole number from {low} to {high}")
