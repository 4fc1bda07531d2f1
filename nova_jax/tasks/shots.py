"""One long text into the prompts of several shots.

The rule of N + 1 sentences: a text for N shots has N + 1 sentences. Each of the first N is a scene; the last is the
look (lens, light, style) that all shots share. Prompts published for Amazon Nova Reel are written so.
"""

import itertools
import re
from typing import NamedTuple

# Such as Mr. and e.g., whose full stop ends no sentence.
ABBREVIATIONS = ("mr", "mrs", "ms", "dr", "st", "vs", "e.g", "i.e")
_PARAGRAPH = re.compile(r"\n\s*\n")
_END = re.compile(r"(?<=[.!?])[\"')\]\u201d\u2019]*(?=\s|$)")  # with the quotes and brackets that close there


class Split(NamedTuple):
    """What `split_shots` made of a text.

    Attributes:
        prompts: One per shot, complete: its sentences, then the look.
        look: The sentence that all shots share; "" where there is none.
    """

    prompts: tuple[str, ...]
    look: str


def split_shots(text: str, count: int) -> Split:
    """The prompts of so many shots; every word of the text is in one of them at least.

    With M sentences for N shots:

        M = N + 1   one sentence each, and the last one, the look, behind each of them
        M >= N      all of them in order, shot i those from i M / N to (i + 1) M / N (rounded down); no look
        M < N       shot i the sentence i M / N (rounded down), so that neighbours share one; no look

    Raises:
        ValueError: there is no word, or no shot.
    """
    sentences = split_sentences(text)
    if not sentences or count < 1:
        raise ValueError(f"{len(sentences)} sentences for {count} shots: give a text, and 1 shot or more")
    m = len(sentences)
    if m == count + 1:
        look = sentences[-1]
        return Split(tuple(f"{scene} {look}" for scene in sentences[:-1]), look)
    bounds = [i * m // count for i in range(count + 1)]
    pairs = itertools.pairwise(bounds)
    return Split(tuple(" ".join(sentences[start : max(end, start + 1)]) for start, end in pairs), "")


def split_sentences(text: str) -> list[str]:
    """The sentences of a text, white space inside them reduced to single blanks.

    A sentence ends with . ! or ? before white space (not after `ABBREVIATIONS`), or with its paragraph.
    """
    found = []
    for paragraph in _PARAGRAPH.split(text):
        start = 0
        for end in _END.finditer(paragraph):
            if _is_abbreviation(paragraph[start : end.start()]):
                continue
            found.append(paragraph[start : end.end()])
            start = end.end()
        found.append(paragraph[start:])
    joined = [" ".join(sentence.split()) for sentence in found]
    return [sentence for sentence in joined if sentence]


def _is_abbreviation(sentence: str) -> bool:
    words = sentence.lower().split()
    return bool(words) and words[-1].lstrip("(\"'").removesuffix(".") in ABBREVIATIONS
