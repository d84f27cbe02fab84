"""Which of the drafts on offer a step carries: those that make it give the most tokens a second."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import NamedTuple

from tokenspeed.core import sequence as core
from tokenspeed.core.costs import Costs, Work


class Offer(NamedTuple):
    """A row that could carry drafts: `chances[j]` that the first j + 1 of them hold.

    `guessed` by the draft model, which has to compute `behind` tokens first; spread over the tokens that the
    sequence may be expected to get, that takes it `share` seconds for each. `cheap`: to do so only to see
    whether drafts hold takes little.
    """

    sequence: core.Sequence
    chances: list[float]
    guessed: bool
    behind: int = 0
    share: float = 0.0
    cheap: bool = True


class Room(NamedTuple):
    """How long a step with drafts may take at most, in seconds, and how many there may be."""

    seconds: float
    drafts: float


def reach(costs: Costs, work: Work, room: Room) -> int:
    """Tokens that the draft model may catch up by in a step of that work.

    It takes no longer for them than the rest of the step takes, so that no reader waits more than about
    twice as long for a token, and no longer than the step may take; nor are there more than a step may have.
    """
    whole, late = costs.seconds(work), costs.late * work.late
    seconds = min(whole - 2.0 * late, room.seconds - whole)
    if not work.rounds:
        seconds -= costs.round
    if seconds <= 0.0:
        return 0
    return max(0, int(min(room.drafts, seconds / costs.late if costs.late else inf)))


class Terms:
    """What a step of that work costs without drafts, and may cost with them.

    Drafts can only follow tokens that are there: the device waits `gap` seconds for such a step.
    """

    def __init__(self, costs: Costs, work: Work, room: Room, gap: float) -> None:
        self.plain = costs.seconds(work)
        self.rows = max(work.rows, 1)
        self.reach = reach(costs, work, room)
        # Tokens that the draft model may lack in a step in which it guesses: one guess is to fit beside them.
        guess = costs.verify + costs.round + gap + costs.draft + costs.read + costs.guess
        self.near = min(self.reach, reach(costs, work, Room(room.seconds - guess, room.drafts)))
        self._costs = costs
        self._room = room
        self._gap = gap

    @property
    def rate(self) -> float:
        """Tokens a second without drafts."""
        return self.rows / self.plain

    def share(self, behind: int, tokens: int) -> float:
        """Seconds that each of `tokens` bears of what the draft model takes to compute those `behind`; where
        that takes more than a step, each has a pass for it."""
        late = self._costs.late
        if behind > self.near:
            late += self._costs.round / self.reach if self.reach else inf
        return late * behind / tokens

    def best(self, offers: Sequence[Offer], least: float) -> tuple[float, list[int]]:
        """The most tokens a second above `least`, and the drafts of each offer that give them: none where
        nothing is above it."""
        best, chosen = least, [0] * len(offers)
        rounds = max([len(offer.chances) for offer in offers if offer.guessed], default=0)
        for count in range(rounds + 1):
            rate, counts = self._filled(offers, count, best)
            if rate > best:
                best, chosen = rate, counts
        return best, chosen

    @property
    def most_behind(self) -> float:
        """Tokens that the draft model may lack if all that the step may take is for that."""
        seconds = self._room.seconds - self.plain
        return seconds / self._costs.late if self._costs.late else inf

    def most(self, offers: Sequence[Offer]) -> list[int]:
        """As many drafts of each offer as there may be."""
        counts, drafts, behind = [], self._room.drafts, self.most_behind
        for offer in offers:
            count = int(min(len(offer.chances), drafts)) if offer.behind <= behind else 0
            counts.append(max(count, 0))
            if count > 0:
                drafts -= count
                behind -= offer.behind
        return counts

    def left_behind(self, far: Sequence[Offer], sent: Sequence[Offer], least: float) -> list[Offer]:
        """Of offers too far behind to be sent, those that would be beside those that are `sent`, if the draft
        model lacked nothing of them, and though each token bears its share of that."""
        own = self._costs.draft + self._costs.read + self._costs.guess
        late = [offer for offer in far if offer.chances[0] >= least * (own + offer.share)]
        if not late:
            return []
        _, wanted = self.best([*(offer._replace(behind=0) for offer in late), *sent], least)
        return [offer for offer, count in zip(late, wanted, strict=False) if count]

    def _filled(self, offers: Sequence[Offer], rounds: int, best: float) -> tuple[float, list[int]]:
        """Tokens a second with so many rounds of the draft model, and the drafts of each offer: those most
        likely to hold first, as long as each makes the step give more tokens a second.

        What is worth less than `best` tokens a second cannot be part of anything better than that.
        """
        costs, room = self._costs, self._room
        looked_up, guessed = costs.draft + costs.read, costs.draft + costs.read + costs.guess
        ranked = []
        for n, offer in enumerate(offers):
            least = best * (guessed if offer.guessed else looked_up)
            for draft, chance in enumerate(offer.chances[:rounds] if offer.guessed else offer.chances):
                if chance < least:
                    break
                ranked.append((-chance, n, draft))
        ranked.sort()
        took = self.plain + costs.verify + rounds * costs.round + self._gap
        tokens, late, sent, counts = float(self.rows), 0.0, 0, [0] * len(offers)
        for unlikely, n, draft in ranked:
            offer = offers[n]
            own = (guessed if offer.guessed else looked_up) - offer.share * unlikely
            delay = 0.0
            if draft == 0 and offer.behind:
                delay = costs.late * offer.behind
            if draft == 0:
                own += offer.share  # the row's own token bears it as well
            if counts[n] < draft or -unlikely * took < tokens * own:
                continue
            if sent >= room.drafts or took + late + own + delay > room.seconds or late + delay > self.plain:
                continue
            sent += 1
            counts[n] += 1
            took += own
            late += delay
            tokens -= unlikely
        return (tokens / took if sent else 0.0), counts
