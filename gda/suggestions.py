"""Did-you-mean for mistyped names."""

import difflib
from collections.abc import Iterable


def near(name: str, choices: Iterable[str], count: int = 3) -> list[str]:
    """Returns the choices that look most like ``name``, best first.

    Case and the characters ``-``, ``_`` and ``/`` are ignored, and so are look-alikes of digits
    (the letter O for 0, l and I for 1), which difflib alone would rank below longer matches.
    """
    look_alike = str.maketrans({"o": "0", "l": "1", "i": "1", "-": None, "_": None, "/": None})

    def plain(text: str) -> str:
        return text.lower().translate(look_alike)

    by_plain: dict[str, list[str]] = {}
    for choice in choices:
        by_plain.setdefault(plain(choice), []).append(choice)
    if plain(name) in by_plain:
        return by_plain[plain(name)][:count]
    matches = difflib.get_close_matches(plain(name), list(by_plain), n=count, cutoff=0.6)
    return [choice for match in matches for choice in by_plain[match]][:count]


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Returns ``did you mean 'a' or 'b'?`` for near matches, else the list of choices (if short)."""
    choices = sorted(choices)
    matches = near(name, choices)
    if matches:
        return f"did you mean {' or '.join(repr(match) for match in matches)}?"
    if len(choices) <= 12:
        return f"there are: {', '.join(choices)}" if choices else "there are none"
    return f"there are {len(choices)}, such as {', '.join(choices[:8])}"
