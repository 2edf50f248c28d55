"""Writes values as TOML has them."""

import json


def to_toml(value: object) -> str:
    """Return a string, number, boolean, list or table in one line."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(to_toml, value))}]"
    if isinstance(value, dict):
        pairs = (f"{key} = {to_toml(each)}" for key, each in value.items())
        return f"{{ {', '.join(pairs)} }}"
    return json.dumps(value)
