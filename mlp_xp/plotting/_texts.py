"""Names in pictures: wrapped or shortened to the room there is, and in fonts that have their glyphs."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from itertools import takewhile

from matplotlib import rc_context, rcParams
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.textpath import text_to_path

ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"

MISSING_GLYPHS = "\N{WHITE SQUARE}?"
"""Characters, in order of preference, that are shown for one that no installed font has a glyph of."""

LINE_BREAK_CHARACTERS = f" _-/.,;:{ELLIPSIS}"
"""Characters after which a line may end; a longer word is broken anywhere."""

MAX_CHARACTERS_MEASURED = 400
"""Maximum number of characters of a text that is measured; of a longer one the middle is cut first."""

LEGEND_COLUMN_EMS = 4.0
"""Width of a legend's column beside its text, in font sizes: handle 2, padding 0.8, column spacing 1.2."""

MIN_LABEL_EMS = 5.0
"""Minimum width of a legend's text, in font sizes: 8 letters or so."""


def font_points(size: str | float) -> float:
    """Return a font size, such as "small", in points."""
    return float(FontProperties(size=size).get_size_in_points())


def text_width(text: str, size: float) -> float:
    """Return the width in points of a line of text in the default font, without kerning."""
    families = tuple(rcParams["font.family"])
    return 0.01 * size * sum(_character_width(each, families) for each in text)


@lru_cache(maxsize=4096)  # measuring whole texts took most of the time of drawing
def _character_width(character: str, families: tuple[str, ...]) -> float:
    """Return the advance width in points of a character at a font size of 100."""
    font = FontProperties(family=families, size=100.0)
    between, nothing = (
        text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]
        for text in (f"|{character}|", "||")
    )
    return float(between - nothing)


def escape_mathtext(text: str) -> str:
    """Return a text with "$" escaped, so that matplotlib does not read it as a formula."""
    return text.replace("$", r"\$")


def one_line(text: str) -> str:
    """Return a text without line breaks and control characters, with squares for missing glyphs."""
    line = " ".join("".join(each if each.isprintable() else " " for each in text).split())
    if line.isascii():
        return line
    glyphs = _glyphs(*rcParams["font.family"])
    shown = next((each for each in MISSING_GLYPHS if each in glyphs), "")
    return line.translate(dict.fromkeys(map(ord, set(line) - glyphs), shown))


def fit_text(text: str, width: float, size: float, n_lines: int = 1) -> str:
    """Return a text that fits into lines of `width` points, "$" escaped; its middle is cut if necessary."""
    return escape_mathtext(_fit(one_line(text), width, size, n_lines, _cut_middle))


def fit_names(names: Sequence[str], width: float, size: float, n_lines: int = 1) -> list[str]:
    """Return names as `fit_text` does, all distinct.

    Names that become equal when their middles are cut are shown around their first difference; those that
    are equal then too, or that differ in line breaks only, are followed by their position, as in "#12".
    """
    lines = [one_line(name) for name in names]
    fitted = [_fit(line, width, size, n_lines, _cut_middle) for line in lines]
    for same in _positions_of_equal(fitted):
        columns = zip(*(lines[index] for index in same))
        start = len(list(takewhile(lambda column: len(set(column)) == 1, columns)))
        for index in same:
            fitted[index] = _fit(lines[index], width, size, n_lines, partial(_cut_around, start=start))
    equal = [index for same in _positions_of_equal(fitted) for index in same]
    # A name may look like another one with its position.
    for positions in (equal, range(len(names))) if equal else ():
        for index in positions:
            number = f" #{index + 1}"
            room = width - text_width(number, size)
            fitted[index] = _fit(lines[index], room, size, n_lines, _cut_middle) + number
        if not _positions_of_equal(fitted):
            break
    return [escape_mathtext(name) for name in fitted]


def _positions_of_equal(texts: Sequence[str]) -> list[list[int]]:
    """Return the positions of each text that occurs more than once."""
    return [
        [index for index, other in enumerate(texts) if other == text]
        for text, count in Counter(texts).items()
        if count > 1
    ]


def _fit(text: str, width: float, size: float, n_lines: int, cut: Callable[[str, int], str]) -> str:
    """Return a text in at most `n_lines` lines, with as many of its characters left by `cut` as fit."""

    def wrapped(text: str) -> list[str]:
        return _wrap(text, width, size, n_lines)

    if len(text) <= MAX_CHARACTERS_MEASURED and len(lines := wrapped(text)) <= n_lines:
        return "\n".join(lines)
    numbers = range(1, min(len(text), MAX_CHARACTERS_MEASURED))
    n_kept = bisect_left(numbers, True, key=lambda number: len(wrapped(cut(text, number))) > n_lines)
    return "\n".join(wrapped(cut(text, n_kept))[:n_lines])


def _wrap(text: str, width: float, size: float, n_lines: int) -> list[str]:
    """Return the lines of a text, each as long as fits; what comes after `n_lines` of them is one more."""
    lines: list[str] = []
    while text_width(text, size) > width and len(text) > 1 and len(lines) < n_lines:
        n_fit = bisect_right(range(2, len(text)), width, key=lambda end: text_width(text[:end], size)) + 1
        if text[n_fit] != " ":
            last = max(text.rfind(each, 0, n_fit) for each in LINE_BREAK_CHARACTERS) + 1
            n_fit = last if last > n_fit // 2 else n_fit
        lines.append(text[:n_fit].rstrip())
        text = text[n_fit:].lstrip()
    return [*lines, text] if text or not lines else lines


def _cut_middle(text: str, n_kept: int) -> str:
    """Return the beginning and the end of a text, with an ellipsis between them."""
    return f"{text[: (n_kept + 1) // 2].rstrip()}{ELLIPSIS}{text[len(text) - n_kept // 2 :].lstrip()}"


def _cut_around(text: str, n_kept: int, start: int) -> str:
    """Return the beginning of a text and, after an ellipsis, its part from `start` on."""
    n_before = n_kept // 3
    if start <= n_before:
        return text[:n_kept].rstrip() + ELLIPSIS
    end = start + n_kept - n_before
    return (
        f"{text[:n_before].rstrip()}{ELLIPSIS}{text[start:end].strip()}{ELLIPSIS if end < len(text) else ''}"
    )


@contextmanager
def fallback_fonts(*texts: str) -> Iterator[None]:
    """Let matplotlib fall back to installed fonts for characters that the default font has no glyphs of."""
    default = rcParams["font.family"]
    missing = {each for text in texts for each in text if each.isprintable()} - _glyphs(*default)
    with rc_context({"font.family": [*default, *_families_with(frozenset(missing))]}):
        yield


def _glyphs(*families: str) -> frozenset[str]:
    """Return the characters that installed fonts of these families have glyphs of."""
    glyphs: frozenset[str] = frozenset()
    for family in families:
        with suppress(ValueError):  # none is installed
            path = findfont(FontProperties(family=[family]), fallback_to_default=False)
            glyphs |= _glyphs_of_font(path)
    return glyphs


@lru_cache(maxsize=8)
def _glyphs_of_font(path: str) -> frozenset[str]:
    """Return the characters that a font has glyphs of; none if it cannot be read."""
    try:
        return frozenset(map(chr, get_font(path).get_charmap()))
    except (OSError, RuntimeError):
        return frozenset()


@lru_cache(maxsize=16)
def _families_with(characters: frozenset[str]) -> tuple[str, ...]:
    """Return installed font families that have glyphs of characters, those with most of them first."""
    families: list[str] = []
    found = {
        font.name: characters & _glyphs_of_font(font.fname)
        for font in (fontManager.ttflist if characters else ())
        # The font of last resort has glyphs of all characters, which show none of them.
        if (font.style, font.weight) == ("normal", 400) and "LastResort" not in font.fname
    }
    while found:
        best = max(found, key=lambda name: len(found[name] & characters))
        if not found[best] & characters:
            break
        families.append(best)
        characters -= found.pop(best)
    return tuple(families)


def fit_legend(names: Sequence[str], width: float, height: float, size: float) -> tuple[list[str], int]:
    """Return the labels of a legend of at most these points, and its number of columns.

    The fewest rows are taken in which no name is shortened. Where even the shortest names do not fit, the
    last label tells how many are left out: there are fewer labels than names then, or as many.
    """
    max_rows = max(1, math.floor((height / size - 0.8) / 1.7))
    max_columns = max(1, math.floor((width / size + 0.4) / (MIN_LABEL_EMS + LEGEND_COLUMN_EMS)))
    if len(names) > max_rows * max_columns:
        kept = max_rows * max_columns - 1
        names = [*names[:kept], f"{ELLIPSIS} {len(names) - kept} more"]
    labels, n_columns = list(names), 1
    for n_rows in range(math.ceil(len(names) / max_columns), max_rows + 1):
        n_columns = math.ceil(len(names) / n_rows)
        room = (width + 0.4 * size) / n_columns - LEGEND_COLUMN_EMS * size
        labels = fit_names(names, room, size)
        if labels == [escape_mathtext(one_line(name)) for name in names] or n_columns == 1:
            break
    return labels, n_columns
