"""Choices with settings in one line, such as "chunked:frames=4", for options of any kind."""

import difflib
from collections.abc import Collection, Mapping


def split_settings(
    what: str, text: object, known: Mapping[str, Collection[str]], example: str
) -> tuple[str, dict[str, str]]:
    """Splits a choice into its kind and its settings, whose values stay as they are written.

    Args:
        what: The option's name, for errors.
        text: As the user wrote it.
        known: Kind -> names of its settings.
        example: A choice that could be meant.

    Raises:
        ValueError: If the kind or a setting is unknown, or one is given twice.

    >>> split_settings("schedule", "chunked:frames=4", {"chunked": {"frames"}}, "")
    ('chunked', {'frames': '4'})
    """
    kind, _, rest = text.partition(":") if isinstance(text, str) else ("", "", "")
    if kind not in known:
        like = difflib.get_close_matches(kind, known, 1)
        hint = f"did you mean {like[0]!r}? " if like else ""
        raise ValueError(
            f"{what} {text!r} is unknown; {hint}use one of {', '.join(known)}, such as {example!r}"
        )
    settings: dict[str, str] = {}
    for part in rest.split(",") if rest else []:
        name, _, value = part.partition("=")
        if name not in known[kind]:
            names = ", ".join(known[kind]) or "no settings"
            raise ValueError(f"{what} {text!r}: {kind} has {names}")
        if name in settings:
            raise ValueError(f"{what} {text!r}: {name} is given twice; leave one out")
        settings[name] = value
    return kind, settings
