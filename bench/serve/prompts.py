"""Prompts of random words, so that no server has met a prefix before, sized in the server's own tokens."""

from __future__ import annotations

from random import Random
from typing import Annotated

import msgspec

# Common words: most vocabularies hold each as one token, so that lengths are close to what is wanted.
WORDS = """
about above after again air all also and animal answer any are around ask away back because been before
began below between big blue boat book both boy bring build but call came can car care carry change city
close cold come could country cut day did different does door down draw each early earth eat end enough even
every eye face family far farm fast father feet few find fire first fish five food form found four friend
from full game gave get girl give good got great green ground group grow had hand hard has have head hear
help her here high him his home horse hot hour house how idea into just keep kind king know land large last
late learn leave left letter life light like line list little live long look low made make man many map mark
mean men mile money moon more most mother move much music must name near need never new next night north
note now number often old once one only open order other our out over own page paper part pass people place
plain plan plant play point port power press put question quick rain ran reach read real red rest right
river road rock room round rule run said same saw say school sea second see seem sentence serve set shape
she ship short should show side simple since six sleep slow small snow some song soon sound south space
spell stand star start state stay step still stop story street strong study such sun table take talk teach
tell ten test than that the their them then there these they thing think this those thought three through
time together told too took top toward town travel tree true try turn two under unit until use very voice
walk wall want war warm was watch water way week well went were west what wheel when where which while white
who whole why will wind with wonder wood word work world would write year yes you young
""".split()  # noqa: SIM905 - a list of them would be ten times as long


class Sizing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How an endpoint counts: `base` tokens around a prompt, and so many for each word."""

    base: float = 0.0
    per_word: Annotated[float, msgspec.Meta(gt=0)] = 1.3
    measured: bool = False  # by the endpoint's own counts

    def words(self, tokens: int) -> int:
        """How many words make a prompt of about so many tokens; at least one."""
        return max(1, round((tokens - self.base) / self.per_word))


def fitted(odd: int, even: int, both: int) -> Sizing:
    """From the counted tokens of three prompts: two halves of the words, and all of them, each word once.

    The sum of the halves holds `base` twice, so both numbers are exact for words drawn evenly.
    """
    base = odd + even - both
    per_word = (both - base) / len(WORDS)
    if base < 0 or per_word <= 0:  # a server that counts only what its cache did not have, or counts nothing
        return Sizing()
    return Sizing(base, per_word, measured=True)


def text(words: int, random: Random) -> str:
    """So many random words."""
    return " ".join(random.choices(WORDS, k=words))
