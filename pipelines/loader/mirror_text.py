"""Words of direction in sentences about a mirrored picture: left becomes right, and right becomes left.

English only. Where it is not certain that a word means a direction, or where the picture shows something that must not
be mirrored (writing, numbers, clock faces), the answer is None: such a picture is left as it is.
"""

import re

_SIDES = {"left": "right", "right": "left", "lft": "rt", "rt": "lft"}
# Neither side of these changes in a mirror.
_IDIOMS = (
    r"(?:left|right)[ -](?:now|away|angles?|angled|side[ -]up)|(?:left|right) of way"
    r"|(?:left|right)overs?|all (?:left|right)"
)
# A direction for certain: "on the right in front", "far left behind".
_MARKED = r"(?:(?:on|to|at|from|in|the|far|very|top|bottom|upper|lower|your|our|my|his|her|its|front|back|'s)[ -])"
# "exactly" or "remaining" as well as a direction: "right behind him", "the only one left", "left over".
_UNSURE = re.compile(
    rf"(?<!\w)(?<!-)(?:{_MARKED})?(?:"
    r"right (?:in|on|at|by|next|behind|beside|under|above|below|beneath|before|after|against|through|there|here|over|"
    r"up|down|near|outside|inside|where|between|along|across|around|as)"
    r"|left (?:behind|over|out|alone|open|in|on|unattended|untouched|uneaten)"
    r"|(?:only(?: \w+){0,3}|one|is|are|was|were|has|have|had|been|be|being|nothing|anything|much|any) (?:left|right)"
    r"(?! (?:of|side|hand)\b)"
    r")\b",
    re.IGNORECASE,
)
_CERTAIN = re.compile(rf"{_MARKED}(?:left|right)\b", re.IGNORECASE)
# Writing, numbers, hands of a clock, compass: a mirrored picture shows them wrong or another way round.
_NOT_MIRRORED = re.compile(
    r"\d|[\"“”]|\b(?:says?|saying|reads?|reading|word(?:s|ing)?|letters?|text|writing|written|numbers?|numbered|logo|sign|"
    r"o'?clock|(?:counter)?clockwise|east(?:ern)?|west(?:ern)?|correct|wrong|mirrored|rite|l|r)\b",
    re.IGNORECASE,
)
_TOKEN = re.compile(
    rf"\b(?:(?P<idiom>{_IDIOMS})|(?P<side>left|right|lft|rt)(?P<end>most|hand|handed|wards?|er|est)?)\b", re.I
)


def mirror_text(text: str) -> str | None:
    """A sentence or caption as it describes the mirrored picture, in the letter case of the original.

    Applied twice it gives the original. Words that merely contain the letters stay (``upright``, ``bright``).

    Returns:
        The text, or None where the picture had better not be mirrored (see above; also: text that is not English as far
        as its letters tell).
    """
    if not text.isascii() and any(letter.isalpha() and not letter.isascii() for letter in text):
        return None
    if _NOT_MIRRORED.search(text):
        return None
    for match in _UNSURE.finditer(text):
        if not _CERTAIN.match(match[0]):
            return None
    return _TOKEN.sub(_swapped, text)


def _swapped(match: re.Match) -> str:
    if match["idiom"]:
        return match[0]
    side, end = match["side"], match["end"] or ""
    other = _SIDES[side.lower()]
    if side.isupper():
        other = other.upper()
    elif side[0].isupper():
        other = other.capitalize()
    return other + end
