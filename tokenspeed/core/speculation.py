"""How many drafts each row of a step carries: as many as pay, by what steps cost and how drafts have held."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple

from tokenspeed.core import sequence as core
from tokenspeed.core.choosing import Offer, Room, Terms
from tokenspeed.core.costs import Costs, Work
from tokenspeed.core.families import Families
from tokenspeed.core.lookup import LONGEST, Lookup
from tokenspeed.core.plan import Row
from tokenspeed.core.prospects import Outcome, Prospects, Source
from tokenspeed.options import option

LOOKUP, MODEL = "ngram", "model"  # whose drafts
# What drafts of each kind should hold, before any did: by what an occurrence has in common with the end, and
# by position behind a token for those of a draft model.
CLASSES = (0, 3, 4, 5, 6, 8, 12, 16, 24)  # least tokens in common
FOUND = (0.3, 0.35, 0.45, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9)
GUESSED = 0.6
SURE = 0.98  # no draft holds more often than that
GAIN = 1.03  # tokens a second with drafts, over those without, before any are sent: predictions have errors
# Of so many steps in which drafts would be likely to hold, but not to pay, one carries some all the same.
PROBE_EVERY = 256
LIKELY = 0.5
PROBED = 4  # drafts
SILENT = 16  # rows in a row without a draft, after which the draft model is taken to have failed
SOON = 8  # tokens that a sequence may be expected to get still, however few it has
ASKED = 2  # offers that are weighed in a step, on average, as long as none pays
EVERYONE = 1 << 30  # sequences
CURIOUS = 0.1  # of the time since guesses were last tried, catching up may take for trying them in any case
# Looking up takes the loop so long for a sequence and a token, and in other answers as well twice that; more
# than a share of a step would be felt.
TRACKING_SECONDS = 8e-6
TRACKING_SHARE = 0.02
WORTH_SHARE = 0.5  # of what drafts save, may be spent on finding more
WORTH_MEMORY = 64  # steps
GAP_MEMORY = 32  # steps
GAP = 3e-4  # seconds, before one was measured


@dataclass(frozen=True, slots=True)
class SpeculationOptions:
    """`[speculation]`. With `draft` empty, only the built-in model has a draft model."""

    drafter: str = option("auto", choices=("auto", "ngram", "model", "off"))
    draft: str = option("")  # a folder, or a hub id
    most_drafts: int = option(7, at_least=1, at_most=32)  # of a row in a step
    control: str = option("adaptive", choices=("adaptive", "always"))
    other_answers: bool = option(False)  # are looked in as well, of requests that begin alike


class Carried(NamedTuple):
    """What a row carries: drafts that were looked up, or how many the draft model guesses behind `behind`.

    With no `guess` it only computes `behind`, so that it can guess later.
    """

    drafts: tuple[int, ...] = ()
    guess: int = 0
    behind: tuple[int, ...] = ()


@dataclass(slots=True)
class Counts:
    """Since the start: by drafter, and by position behind a row's token. Seconds are predicted."""

    drafted: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)
    drafted_at: Counter[int] = field(default_factory=Counter)
    accepted_at: Counter[int] = field(default_factory=Counter)
    spent: float = 0.0  # that steps took longer
    saved: float = 0.0  # that tokens which held would have taken otherwise
    failures: int = 0


class Speculation:
    """Decides which rows carry which drafts. `look_up` makes the source of a sequence's drafts.

    Whether drafts would have held is seen without sending any, as long as they are looked up; what verifying
    costs is learned from steps that do.
    """

    def __init__(
        self,
        options: SpeculationOptions,
        *,
        guesses: bool = False,
        guesses_penalised: bool = True,
        guess_context: float = inf,
        look_up: Callable[[Iterable[int]], Source] = Lookup,
        failed: Callable[[Exception], None] = lambda error: None,
    ) -> None:
        """`guesses`: the backend has a draft model, for sequences of up to `guess_context` tokens;
        `guesses_penalised`: also for draws that look at the tokens before them, or that a grammar holds.
        `failed` is told why a source is used no more."""
        self.counts = Counts()
        self._options = options
        self._look_up = look_up if options.drafter in ("auto", LOOKUP) else None
        self._families = Families() if options.other_answers else None
        self._tracking = TRACKING_SECONDS * (1 if self._families is None else 2)
        self._failed = failed
        self.guesses = guesses and options.drafter in ("auto", MODEL)
        self._guesses_penalised = guesses_penalised
        self._guess_context = guess_context
        self._found = [Outcome(chance) for chance in FOUND]
        self._class = [max(n for n, least in enumerate(CLASSES) if least <= c) for c in range(LONGEST + 1)]
        self._guessed = [Outcome(GUESSED) for _ in range(options.most_drafts)]
        self._gap = GAP  # seconds that the device waits for a step that needs the result of the one before
        self._tracked = 0  # sequences whose drafts are looked up
        self._most_tracked = 1
        self._worth = 0.0  # of a step's time, what drafts have saved lately
        self.takes_more = self.active  # whether sequences without prospects are to have some
        self._skipped = 0  # steps since it was asked last whether one should wait
        self._skips = 0  # that are skipped before it is asked again
        self._silent = 0  # rows in a row that the draft model found nothing for
        self._unpaid = 0  # steps in which drafts were likely, and not sent
        self._probing = False
        self._left_behind: list[core.Sequence] = []  # that the draft model is to catch up with

    @property
    def active(self) -> bool:
        return self.guesses or self._look_up is not None

    # -- what came ----------------------------------------------------------------------------------

    def learn(self, sequence: core.Sequence, row: Row, guessed: Sequence[int], held: int, new: int) -> None:
        """The last `new` tokens of a sequence came, `held` of them as drafts of this row."""
        prospects = sequence.prospects
        if prospects is None:
            prospects = sequence.prospects = Prospects()
        if (source := prospects.source) is not None:
            self._learn_found(prospects, source, sequence.tokens[-new:])
            if self._tracked > 2 * self._most_tracked:
                self.ended(sequence)
        elif self._look_up is not None and self._tracked < self._most_tracked:
            prospects.source = self._source(sequence)
            self._tracked += prospects.source is not None
        sequence.foretold = 0 if prospects.source is None else prospects.source.common
        if row.guess:
            self._learn_guessed(prospects, row, len(guessed), held)

    def ended(self, sequence: core.Sequence) -> None:
        """Its drafts are looked up no more."""
        if sequence.prospects is not None and sequence.prospects.source is not None:
            sequence.prospects.source = None
            sequence.foretold = 0
            self._tracked -= 1
            if not self.guesses:
                sequence.prospects = None

    def allow(self, seconds: float) -> None:
        """A step takes so long. Looking up may take the loop a share of that, a larger one where it pays."""
        self._worth *= 1.0 - 1.0 / WORTH_MEMORY
        share = TRACKING_SHARE + WORTH_SHARE * max(0.0, self._worth)
        self._most_tracked = int(share * seconds / self._tracking)  # none, where steps are that short
        if self._options.control == "always":
            self._most_tracked = EVERYONE
        self.takes_more = self.guesses or (self._look_up is not None and self._tracked < self._most_tracked)

    def step(self, costs: Costs, work: Work, held: int, idle: float) -> None:
        """A step was done with drafts, of which so many held, and for which the device waited `idle` seconds,
        or one in which the draft model caught up."""
        if work.verifies:
            self._gap += (min(idle, 10.0 * self._gap) - self._gap) / GAP_MEMORY
        plain = costs.seconds(work._replace(drafts=0, verifies=0, rounds=0, guesses=0, late=0))
        spent, saved = costs.seconds(work) - plain, held * plain / max(work.rows, 1)
        self.counts.spent += spent
        self.counts.saved += saved
        self._worth += (saved - spent) / plain / WORTH_MEMORY

    def _source(self, sequence: core.Sequence) -> Source | None:
        if self._look_up is None:
            return None
        try:
            own = self._look_up(sequence.tokens)
            return own if self._families is None else self._families.beside(own, sequence)
        except Exception as error:
            self._give_up(error)
            return None

    def _give_up(self, error: Exception) -> None:
        """Drafts are looked up no more."""
        if self._look_up is None:
            return  # several had been asked for already
        self._look_up = None
        self.counts.failures += 1
        self._failed(error)

    def _learn_found(self, prospects: Prospects, source: Source, tokens: Sequence[int]) -> None:
        try:
            foretold = source.extend(tokens)
        except Exception as error:
            prospects.source = None
            self._give_up(error)
            return
        for common, true in foretold:
            outcome = self._found[self._class[common]]
            prospects.found.learn(true, outcome.chance)
            outcome.learn(true)

    def _learn_guessed(self, prospects: Prospects, row: Row, count: int, held: int) -> None:
        self._silent = 0 if count else self._silent + 1
        if self._silent == SILENT:
            self.guesses = False
            self.counts.failures += 1
        prospects.guesses_held(row.start + 1, held)
        for position in range(min(held + 1, count)):
            outcome = self._guessed[position]
            prospects.guessed.learn(position < held, outcome.chance)
            outcome.learn(position < held)

    def count(self, row: Row, guessed: Sequence[int], held: int) -> None:
        """A row's drafts were verified, and so many held."""
        counts, drafted = self.counts, len(row.drafts) or len(guessed)
        drafter = MODEL if row.guess else LOOKUP
        counts.drafted[drafter] += drafted
        counts.accepted[drafter] += held
        counts.drafted_at.update(range(drafted))
        counts.accepted_at.update(range(held))

    # -- what to send -------------------------------------------------------------------------------

    def waits(self, running: Iterable[core.Sequence], costs: Costs, room: Room) -> bool:
        """Whether the next step should wait for tokens in flight, because drafts behind them would pay."""
        if self._skipped < self._skips:
            self._skipped += 1
            return False
        ahead = [s for s in running if s.in_flight and s.pending == 1]
        work = Work(len(ahead), read=sum([s.planned + 1 for s in ahead]))
        terms = Terms(costs, work, room, self._gap)
        offers = self._offers(ahead, 1, terms)
        self._skipped = self._skips = 0
        if self._chosen(offers, terms):
            return True
        self._skips = len(offers) // ASKED  # it takes the longer the more there are
        return False

    def choose(
        self, ready: Iterable[core.Sequence], costs: Costs, work: Work, room: Room
    ) -> list[tuple[core.Sequence, Carried]]:
        """What the rows of these sequences, whose tokens are all known, carry in a step of that `work`."""
        terms = Terms(costs, work, room, self._gap)
        found = []
        for offer, count in self._chosen(self._offers(ready, 0, terms), terms):
            sequence, prospects = offer.sequence, offer.sequence.prospects
            if prospects is None:
                continue
            if offer.guessed:
                behind = tuple(sequence.tokens[sequence.caught : -1])
                found.append((sequence, Carried(guess=count, behind=behind)))
            elif drafts := self._proposed(prospects, count):
                found.append((sequence, Carried(drafts)))
        self._probing = False
        return found

    def left_behind(self) -> list[core.Sequence]:
        """Those whose guesses would pay, as far as was seen last, if the draft model had caught up with them:
        who lacks least comes first, for that is what gives guesses soonest."""
        if not (self.guesses and self._left_behind):
            return []
        return sorted(self._left_behind, key=lambda s: len(s.tokens) - s.caught)

    def _proposed(self, prospects: Prospects, count: int) -> tuple[int, ...]:
        try:
            return () if prospects.source is None else prospects.source.propose(count)
        except Exception as error:
            prospects.source = None
            self._give_up(error)
            return ()

    def _offers(self, sequences: Iterable[core.Sequence], ahead: int, terms: Terms) -> list[Offer]:
        guesses = self.guesses
        return [
            offer
            for s in sequences
            if (s.foretold or guesses) and (offer := self._offer(s, ahead, terms)) is not None
        ]

    def _offer(self, sequence: core.Sequence, ahead: int, terms: Terms) -> Offer | None:
        """What it could carry in a row behind `ahead` tokens that are not here yet."""
        prospects = sequence.prospects
        known = len(sequence.tokens) + ahead
        most = min(self._options.most_drafts, sequence.limit - known - 1)
        early = sequence.prompt_length + sequence.request.min_tokens - known
        if early > 0:
            most = min(most, early - 1)  # all that a row draws is bound by the same rules
        if prospects is None or most <= 0 or not sequence.speculates:
            return None
        guesses = (
            self.guesses
            and known <= self._guess_context
            and (self._guesses_penalised or not (sequence.penalised or sequence.held))
        )
        if sequence.foretold and self._look_up is not None:
            chances = self._found_chances(prospects, sequence.foretold, ahead + most)[ahead:]
            if not guesses or chances[0] >= self._guessed[0].chance:
                return Offer(sequence, chances, False)
        return self._guess_offer(sequence, prospects, known, most, terms) if guesses else None

    def _guess_offer(
        self, sequence: core.Sequence, prospects: Prospects, known: int, most: int, terms: Terms
    ) -> Offer:
        """Guesses behind so many tokens. A sequence may be expected to go on for about as long as it has, so
        a short answer to a long prompt never pays for catching up, and a long one does early enough."""
        behind = known - 1 - sequence.caught
        share = 0.0
        if behind:
            tokens = min(max(SOON, known - sequence.prompt_length), sequence.limit - known)
            share = terms.share(behind, tokens)
        since = known - max(prospects.tried_at, sequence.prompt_length)
        cheap = behind <= terms.near or (since > 0 and terms.share(behind, since) * terms.rate <= CURIOUS)
        least = 0.0
        if cheap and known - prospects.tried_at >= prospects.patience:
            least = GUESSED  # whatever luck it has had, and others
        most = int(min(most, self._guess_context - known + 1))
        factor, held, chances = prospects.guessed.factor, 1.0, []
        for outcome in self._guessed[:most]:
            held *= min(SURE, max(outcome.chance * factor, least))
            chances.append(held)
            least = 0.0  # one is enough to see
        return Offer(sequence, chances, True, behind, share, cheap)

    def _found_chances(self, prospects: Prospects, common: int, count: int) -> list[float]:
        factor, held, chances = prospects.found.factor, 1.0, []
        found, classes = self._found, self._class
        for further in range(common, common + count):
            chance = found[classes[further] if further < LONGEST else -1].chance * factor
            held *= chance if chance < SURE else SURE
            chances.append(held)
        return chances

    def _chosen(self, offers: list[Offer], terms: Terms) -> list[tuple[Offer, int]]:
        """The offers that are sent, with how many drafts of each. Notes who is left behind."""
        if self._options.control == "always":
            self._left_behind = [offer.sequence for offer in offers if offer.behind > terms.most_behind]
            return _sent(offers, terms.most(offers))
        near = [offer for offer in offers if offer.behind <= terms.near]
        far = [offer for offer in offers if offer.behind > terms.near]
        if self._probing and near:
            return [self._probe(near)]
        best, counts = terms.best(near, GAIN * terms.rate)
        chosen = _sent(near, counts)
        late = terms.left_behind(far, [offer for offer, _ in chosen], best)
        self._left_behind = [offer.sequence for offer in late]
        return chosen or self._probed(offers, terms)

    def _probed(self, offers: list[Offer], terms: Terms) -> list[tuple[Offer, int]]:
        """Now and then, where drafts are likely to hold and none pay: some, to see what they cost. The draft
        model catches up first, where that takes little."""
        hopeful = [offer for offer in offers if offer.chances[0] >= LIKELY and offer.cheap]
        self._unpaid += bool(hopeful)
        if not hopeful or self._unpaid < PROBE_EVERY:
            return []
        if ready := [offer for offer in hopeful if offer.behind <= terms.near]:
            self._unpaid, self._probing = 0, True
            return [self._probe(ready)]
        self._left_behind = [max(hopeful, key=lambda offer: offer.chances[0]).sequence]
        return []

    def _probe(self, offers: list[Offer]) -> tuple[Offer, int]:
        """The likeliest drafts, whether they pay or not."""
        likely = max(offers, key=lambda offer: offer.chances[0])
        return likely, min(PROBED, len(likely.chances))


def _sent(offers: Sequence[Offer], counts: Sequence[int]) -> list[tuple[Offer, int]]:
    return [(offer, count) for offer, count in zip(offers, counts, strict=True) if count]
