"""Wording of captions: BLEU-4, ROUGE-L and CIDEr-D, by their published formulas and the constants of the COCO scorers.

Captions are compared as lower-case words without points, commas and quotes. The rules that cut them give, on English
captions, the words of the Penn Treebank tokeniser, which the COCO scorers run in Java. METEOR needs Java, and is
``pycocoevalcap``'s own.

Sources: Papineni et al. 2002 (BLEU); Lin 2004 (ROUGE-L); Vedantam et al. 2015 (CIDEr-D).
"""

import math
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.util import find_spec

from padt.errors import install_command

ORDERS = 4
# ROUGE-L counts recall more than precision by this factor; CIDEr-D forgives lengths that differ by about this much.
ROUGE_BETA = 1.2
CIDER_SIGMA = 6.0
# What the COCO scorer adds so that a caption without any common words has a value.
_TINY, _SMALL = 1e-15, 1e-9

# Numbers with points and commas, abbreviations, and words with their hyphens and inner apostrophes; else one sign.
_TOKEN = re.compile(
    r"\d+(?:[.,:/]\d+)*(?:-[^\W_]+)*|(?:[^\W\d_]\.){2,}|[^\W_]+(?:[-'.&/][^\W_]+)*|\.\.\.|--|[^\w\s]", re.UNICODE
)
_CONTRACTION = re.compile(r"(?:n't|'(?:s|re|ve|ll|d|m))$")
_PARTED = {"cannot": ("can", "not"), "gonna": ("gon", "na"), "wanna": ("wan", "na"), "gotta": ("got", "ta")}
_PUNCTUATION = frozenset([*"'\"`.?!,:;-", "--", "...", "``", "''"])
# The tokeniser's names of brackets, which the scorers leave in: their list of punctuation has them in capitals.
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}

Words = tuple[str, ...]


def caption_words(text: str) -> Words:
    """Words of a caption, lower-case, without points, commas and quotes."""
    found: list[str] = []
    plain = text.lower().replace("\u2019", "'").replace("\u2018", "'")
    for token in _TOKEN.findall(plain):
        end = _CONTRACTION.search(token)
        if token in _PARTED:
            found += _PARTED[token]
        elif end is not None and end.start() > 0:
            found += [token[: end.start()], end[0]]
        else:
            found.append(_BRACKETS.get(token, token))
    return tuple(word for word in found if word not in _PUNCTUATION)


def score_wording(answers: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Compare captions with references.

    Args:
        answers: caption by id; an id without one counts as an empty caption.
        references: at least one reference caption for each id.

    Returns:
        ``caption_BLEU_4``, ``caption_ROUGE_L`` and ``caption_CIDEr_D`` (whose best value is 10); empty without ids.

    Raises:
        ValueError: an id has no reference, or an answer belongs to no id.
    """
    if strange := sorted(set(answers) - set(references))[:3]:
        raise ValueError(f"Captions of unknown samples: {', '.join(strange)}.")
    if lacking := sorted(one for one, texts in references.items() if not texts)[:3]:
        raise ValueError(f"Samples without a reference caption: {', '.join(lacking)}.")
    if not references:
        return {}
    pairs = [
        (caption_words(answers.get(one, "")), [caption_words(text) for text in texts])
        for one, texts in references.items()
    ]
    return {
        "caption_BLEU_4": bleu(pairs),
        "caption_ROUGE_L": sum(rouge_l(answer, texts) for answer, texts in pairs) / len(pairs),
        "caption_CIDEr_D": cider_d(pairs),
    }


def ngrams(words: Words, order: int) -> Counter[Words]:
    """Runs of ``order`` words, with how often each comes."""
    return Counter(words[start : start + order] for start in range(len(words) - order + 1))


def bleu(pairs: Sequence[tuple[Words, Sequence[Words]]]) -> float:
    """BLEU-4 of a corpus of answers and their references; brevity against the reference of the nearest length."""
    return bleu_value([sum(each) for each in zip(*(bleu_parts(*pair) for pair in pairs), strict=True)])


def bleu_parts(answer: Words, references: Sequence[Words]) -> list[int]:
    """What one answer adds to BLEU: runs that are matched and written, by order; its length and its reference's."""
    matched, written = [0] * ORDERS, [0] * ORDERS
    for order in range(1, ORDERS + 1):
        most: Counter[Words] = Counter()
        for words in references:
            most |= ngrams(words, order)
        own = ngrams(answer, order)
        matched[order - 1] = (own & most).total()
        written[order - 1] = own.total()
    nearest = min((abs(len(words) - len(answer)), len(words)) for words in references)[1]
    return [*matched, *written, len(answer), nearest]


def bleu_value(parts: Sequence[float]) -> float:
    """BLEU-4 of the parts of answers, added up."""
    matched, written, (answer_length, reference_length) = parts[:ORDERS], parts[ORDERS : 2 * ORDERS], parts[-2:]
    shares = [(hit + _TINY) / (count + _SMALL) for hit, count in zip(matched, written, strict=True)]
    ratio = (answer_length + _TINY) / (reference_length + _SMALL)
    return math.prod(shares) ** (1 / ORDERS) * (math.exp(1 - 1 / ratio) if ratio < 1 else 1.0)


def rouge_l(answer: Words, references: Sequence[Words]) -> float:
    """ROUGE-L: the longest common subsequence, as the best precision with the best recall over the references."""
    common = [(_common_length(answer, words), len(words)) for words in references]
    precision = max(length for length, _ in common) / len(answer) if answer else 0.0
    recall = max(length / total if total else 0.0 for length, total in common)
    if not precision or not recall:
        return 0.0
    return (1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision)


def cider_d(pairs: Sequence[tuple[Words, Sequence[Words]]]) -> float:
    """CIDEr-D, mean over the corpus, in [0, 10]; how rare words are is learnt from the corpus's own references."""
    return sum(cider_d_each(pairs)) / len(pairs)


def cider_d_each(pairs: Sequence[tuple[Words, Sequence[Words]]]) -> list[float]:
    """CIDEr-D of each answer of a corpus."""
    if not pairs:
        return []
    frequency: Counter[Words] = Counter()
    for _, references in pairs:
        frequency.update(
            {gram for words in references for order in range(1, ORDERS + 1) for gram in ngrams(words, order)}
        )
    log_images = math.log(len(pairs))

    def weighted(words: Words, order: int) -> tuple[dict[Words, float], float]:
        weights = {
            gram: count * (log_images - math.log(max(1, frequency[gram])))
            for gram, count in ngrams(words, order).items()
        }
        return weights, math.sqrt(sum(weight**2 for weight in weights.values()))

    values = []
    for answer, references in pairs:
        total = 0.0
        for order in range(1, ORDERS + 1):
            own, own_norm = weighted(answer, order)
            for words in references:
                other, norm = weighted(words, order)
                if own_norm and norm:
                    # A phrase that is repeated is worth no more than in the reference.
                    product = sum(
                        min(weight, other.get(gram, 0.0)) * other.get(gram, 0.0) for gram, weight in own.items()
                    )
                    # The COCO scorer takes the number of bigrams as a caption's length.
                    gap = max(0, len(answer) - 1) - max(0, len(words) - 1)
                    alike = math.exp(-(gap**2) / (2 * CIDER_SIGMA**2))
                    total += product / (own_norm * norm) * alike / (ORDERS * len(references))
        values.append(10 * total)
    return values


def meteor_lacks() -> str | None:
    """What METEOR would need that is not here; None where it can be computed."""
    if find_spec("pycocoevalcap") is None:
        return f"METEOR needs pycocoevalcap: install it with `{install_command('caption')}`."
    if shutil.which("java") is None:
        return "METEOR is a Java program, and there is no `java` on the PATH: install a Java runtime."
    return None


def score_meteor(answers: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> float:
    """METEOR by the original program, where :func:`meteor_lacks` nothing.

    Args:
        answers: caption by id; an id without one counts as an empty caption.
        references: reference captions by id.
    """
    from pycocoevalcap.meteor.meteor import Meteor

    written = {one: [" ".join(caption_words(answers.get(one, "")))] for one in references}
    told = {one: [" ".join(caption_words(text)) for text in texts] for one, texts in references.items()}
    value, _ = Meteor().compute_score(told, written)
    return float(value)


def _common_length(first: Words, second: Words) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(second) + 1)
    for word in first:
        before = 0
        for place, other in enumerate(second, start=1):
            kept = row[place]
            row[place] = before + 1 if word == other else max(row[place], row[place - 1])
            before = kept
    return row[-1]
