"""Arguments of a call held against the JSON Schema of its tool."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}


def accepts(schema: Mapping[str, Any], arguments: Mapping[str, Any], untyped: bool = False) -> bool:
    """Do the arguments keep to the part of JSON Schema that tool schemas use?

    Stricter than JSON Schema in one point: a property that is not declared is wrong unless
    `additionalProperties` allows it, because an invented argument is an error of the call. Unknown keywords and
    types pass. `untyped`: the call's syntax states no types, so a value that is not what is declared may have
    been meant as the text it was.

    >>> schema = {"type": "object", "properties": {"zip": {"type": "string"}}}
    >>> accepts(schema, {"zip": 8001}), accepts(schema, {"zip": 8001}, untyped=True)
    (False, True)
    """
    if untyped:
        declared: Mapping[str, Any] = schema.get("properties", {})
        arguments = {
            key: value if isinstance(value, str) or _conforms(value, declared.get(key)) else json.dumps(value)
            for key, value in arguments.items()
        }
    return _conforms(dict(arguments), schema)


def _conforms(value: Any, schema: Any) -> bool:
    """Does a value keep to its schema?"""
    if not isinstance(schema, Mapping):
        return True
    kinds = schema.get("type", ())
    kinds = (kinds,) if isinstance(kinds, str) else kinds
    if kinds and not any(_is_a(value, kind) for kind in kinds):
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if "anyOf" in schema and not any(_conforms(value, option) for option in schema["anyOf"]):
        return False
    if isinstance(value, list):
        return all(_conforms(item, schema.get("items")) for item in value)
    if not isinstance(value, dict) or "properties" not in schema:
        return True
    declared, extra = schema["properties"], schema.get("additionalProperties", False)
    return all(name in value for name in schema.get("required", ())) and all(
        _conforms(item, declared[name]) if name in declared else bool(extra) for name, item in value.items()
    )


def _is_a(value: Any, kind: str) -> bool:
    if isinstance(value, bool):  # a bool is an int in Python, not in JSON
        return kind == "boolean" or kind not in _TYPES
    if kind == "integer" and isinstance(value, float):  # JSON knows one kind of number: 5.0 is an integer
        return value.is_integer()
    return kind not in _TYPES or isinstance(value, _TYPES[kind])
