"""The noun phrase that ends a stretch of an English sentence, by closed lists of words and no model.

The rule, in order:

1. Words that only connect (``is``, ``and``, ``in``, ``to the left of``) are dropped at the end.
2. The phrase begins after the last word that connects, or after the last determiner or number that has a noun after
   it, whichever comes later. ``of`` connects only after a place (``the left of trees``): ``a group of people`` is one
   noun phrase. A number counts as a determiner: the phrase names the thing, not how many there are.
3. Where only connecting words are left there is no phrase.

Words outside of the lists belong to the phrase, so text in other languages comes out as it went in.
"""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ARTICLES = _words("a an the")
_DETERMINERS = _words(
    "a an the this that these those some any each every another both all several many few no my your his her its our "
    "their one two three four five six seven eight nine ten"
)
# Prepositions, conjunctions, auxiliaries, pronouns, and the verbs and participles that join the things of a
# description; no form of them that is a common noun (face, watch, can).
_CONNECTING = _words(
    "is are was were be been being am has have had do does did could would may might must should "
    "and or but nor while as than then where when which who whom whose there here also "
    "about above across after against along alongside among around at atop before behind below beneath beside besides "
    "between beyond by down during for from in inside into near next off on onto opposite out outside over past "
    "through to toward towards under underneath up upon via with within without "
    "shows showing shown see sees seen depict depicts depicted depicting features featuring contain contains "
    "containing include includes including wear wears wearing holds holding carry carries carrying riding using "
    "watching facing touches touching covered covering surrounds surrounded surrounding refers standing "
    "sits sitting lying not it they he she we you i"
)
_PLACES = _words("left right top bottom front back side middle centre center edge corner end rear inside outside ahead")


def noun_phrase(text: str) -> str:
    """The noun phrase at the end of a text without its determiner; empty where there is none."""
    words = text.split()
    plain = [word.strip("\"'“”‘’*_").lower() for word in words]
    connects = [
        word in _CONNECTING
        or (word == "of" and (place == 0 or plain[place - 1] in _PLACES))
        or (word in _PLACES and plain[place + 1 : place + 2] == ["of"])
        for place, word in enumerate(plain)
    ]
    stop = len(words)
    while stop and (connects[stop - 1] or plain[stop - 1] in _ARTICLES):
        stop -= 1
    start = 0
    for place in range(stop):
        determiner = (plain[place] in _DETERMINERS or plain[place].isdecimal()) and place + 1 < stop
        if connects[place] or determiner:
            start = place + 1
    return " ".join(words[start:stop])
