"""Turns pydantic's errors into our own words: key, value, and what was expected."""

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import fields
from itertools import islice
from typing import Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from proxyshim.config.settings import Dns, File, Limits, ListenerSettings, Log, Metrics

# What a TOML file calls the types of our settings.
_EXPECTED: Final = {
    "tuple_type": "a list",
    "too_short": "at least one entry",
    "string_type": "a text in quotes",
    "string_too_short": "a text that is not empty",
    "string_pattern_mismatch": "a text that matches {pattern}",
    "float_type": "a number",
    "int_type": "a whole number",
    "bool_type": "true or false",
    "dataclass_type": "a table",
}

_TABLES: Final[dict[str, type]] = {
    "log": Log,
    "metrics": Metrics,
    "dns": Dns,
    "limits": Limits,
    "listener": ListenerSettings,
}


# A file with thousands of mistakes is the wrong file, and should not fill the log.
_MAX_MISTAKES: Final = 10
_MAX_SHOWN_CHARS: Final = 200


def explain(error: ValidationError) -> Iterator[str]:
    """Yield one line for each mistake in the file, up to ten."""
    mistakes = _first_causes(error)
    yield from map(_explain_one, islice(mistakes, _MAX_MISTAKES))
    if len(mistakes) > _MAX_MISTAKES:
        yield f"and {len(mistakes) - _MAX_MISTAKES} more mistakes"


def _first_causes(error: ValidationError) -> list[ErrorDetails]:
    """Leave out each complaint that a list is too short only because its entries are bad."""
    found = error.errors()
    return [
        one
        for one in found
        if one["type"] != "too_short"
        or not any(
            other is not one and other["loc"][: len(one["loc"])] == one["loc"]
            for other in found
        )
    ]


def _explain_one(error: ErrorDetails) -> str:
    key = _key_at(error["loc"])
    if error["type"] in ("missing", "missing_argument"):
        return f"{key}: missing; it has no default"
    value = f"{key} = {_shown(error['input'])}"
    if error["loc"] == ("listener",) and error["type"] == "tuple_type":
        return f"{value}: expected one or more [[listener]] tables"
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{value}: unknown key{_nearest(error['loc'])}"
    if (expected := _EXPECTED.get(error["type"])) is not None:
        expected = expected.format(**error.get("ctx", {}))
    else:
        expected = error["msg"].removeprefix("Value error, ")
        expected = expected.removeprefix("Input should be ")
    return f"{value}: expected {expected.removeprefix('expected ')}"


def _shown(value: object) -> str:
    try:
        return f"{value!r:.{_MAX_SHOWN_CHARS}}"
    except RecursionError:
        return "(nested too deeply to be shown)"
    except ValueError:  # from int(), about thousands of digits
        return "(a number too long to be shown)"


def _key_at(location: Iterable[int | str]) -> str:
    key = ""
    for part in location:
        if isinstance(part, int):
            key += f"[{part + 1}]"
        else:  # what the file has there, which may be anything
            name = part if part.isprintable() else repr(part)
            key += ("." if key else "") + name[:_MAX_SHOWN_CHARS]
    return key


def _nearest(location: tuple[int | str, ...]) -> str:
    table = _TABLES.get(str(location[0]), File) if len(location) > 1 else File
    known = [field.name for field in fields(table)]
    close = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
