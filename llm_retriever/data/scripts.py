"""Scripts that write no spaces between words, and which language's analysis suits the scripts of a text.

Chinese, Japanese, Thai, Lao, Khmer, Burmese and Tibetan texts are one word, or a few, to whatever parts words at spaces. Each
character of theirs stands for a word here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

_HAN = "\u2e80-\u2fdf\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_KANA = "\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"
_OTHERS = "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff"
UNSPACED = re.compile(f"[{_HAN}{_KANA}{_OTHERS}]")
WORD = re.compile(r"\w+")
_RUN = re.compile(rf"\s*([{_OTHERS}]+)\s*")
_MIXED = re.compile(rf"{UNSPACED.pattern}|(?:(?!{UNSPACED.pattern})\w)+")
ENGLISH, PAIRED = "en", "th"
"""The language where no script is known, and the one that is analysed as pairs of characters."""
SCRIPTS = {
    "zh": _HAN,
    "ja": _KANA,
    "ko": "\u1100-\u11ff\u3130-\u318f\uac00-\ud7af",
    "th": _OTHERS,
    "ar": "\u0600-\u06ff\u0750-\u077f",
    "hi": "\u0900-\u097f",
    "bn": "\u0980-\u09ff",
    "te": "\u0c00-\u0c7f",
    "ru": "\u0400-\u04ff",
    ENGLISH: "A-Za-z\u00c0-\u024f",
}
"""Characters by the language that is taken for granted where a corpus is written in them."""
_OF_SCRIPT = {language: re.compile(f"[{characters}]") for language, characters in SCRIPTS.items()}
KANA_SHARE = 0.05
"""Japanese writes Han too, and never without some kana; Chinese texts quote a few."""


def words(text: str) -> list[str]:
    """Splits a text into words, without punctuation; where no spaces are written, into characters.

    Example:
        >>> words("A glacier: 冰川移动。"), words("don't")
        (['A', 'glacier', '冰', '川', '移', '动'], ['don', 't'])
    """
    return (_MIXED if has_unspaced(text) else WORD).findall(text)


def has_unspaced(text: str) -> bool:
    """Whether a character is of a script that writes no spaces."""
    return not text.isascii() and UNSPACED.search(text) is not None


def is_unspaced(text: str) -> bool:
    """Whether most of a text's characters are of scripts that write no spaces.

    Example:
        >>> is_unspaced("冰川 glacier 移动缓慢的河"), is_unspaced("The word 冰川 means glacier.")
        (True, False)
    """
    return has_unspaced(text) and 2 * len(UNSPACED.findall(text)) > len(text) - text.count(" ")


def as_pairs(text: str) -> str:
    """Rewrites runs of characters of Thai, Lao, Khmer, Burmese and Tibetan as their overlapping pairs.

    Example:
        >>> as_pairs("ABC ชื่อ 12")
        'ABC ชื ื่ ่อ 12'
    """
    return _RUN.sub(lambda run: f" {' '.join(_pairs(run[1]))} ", text).strip()


def _pairs(run: str) -> list[str]:
    return [run[start : start + 2] for start in range(max(1, len(run) - 1))]


def language_of(texts: Iterable[str]) -> str:
    """Chooses the language whose script most letters of the texts are in, a key of `SCRIPTS`; English where there are none.

    Example:
        >>> language_of(["氷河は動く", "川"]), language_of(["ледник движется"]), language_of(["12"])
        ('ja', 'ru', 'en')
    """
    counts: Counter[str] = Counter()
    for text in texts:
        if text.isascii():
            counts[ENGLISH] += len(text)
        else:
            counts.update({language: len(letters.findall(text)) for language, letters in _OF_SCRIPT.items()})
    if counts["ja"] > KANA_SHARE * (counts["ja"] + counts["zh"]):
        counts["ja"] += counts.pop("zh", 0)
    language, number = max(counts.items(), key=lambda item: item[1], default=(ENGLISH, 0))
    return language if number else ENGLISH
