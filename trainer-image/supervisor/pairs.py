"""Nodes are checked in pairs: who meets whom, and who is to blame. Pure; the master's books keep a Pairs, checks.py
plays it through, paircheck.py does the work.

Members form a ring and each meets its two neighbours in it, in rounds in which nobody meets two others: two rounds, or
three if the number of members is odd. A pair passes if both of it say so. A member that failed with both neighbours,
one of which has passed with its other one, cannot be innocent: that neighbour is well. If a pair passes exactly when
both are well, nobody who is well is ever blamed; one who is not is always found in a ring of three or more, two in a
ring of five or more. Where everybody failed it is rather what they have in common. Two who failed with each other and
passed with others are well: the network is broken between them, and one of them has to go elsewhere."""

from __future__ import annotations

from typing import Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from supervisor.events import Checked, PairOrder

Pair = Tuple[int, int]

MOST = 2  # members blamed at once that are believed, or 10 %: more are probably the network's between them
SHOWN = 4  # pairs named in a sentence
WORDS = 300  # characters of a reason


def rounds(members: Sequence[int]) -> List[List[Pair]]:
    """The pairs of each round. Two members meet twice: a second time tells an accident from a fault."""
    count = len(members)
    if count < 2:
        return []
    if count == 2:
        return [[(members[0], members[1])]] * 2
    ring = [(members[at], members[(at + 1) % count]) for at in range(count)]
    if count % 2 == 0:
        return [ring[0::2], ring[1::2]]
    return [ring[0:-1:2], ring[1::2], [ring[-1]]]


class Verdict(NamedTuple):
    """What the rounds have shown."""

    culprits: List[int]  # members, ascending
    failed: List[Pair]  # in the order in which they met
    pairs: int  # how many met
    reason: str  # one line


Answers = Mapping[Tuple[int, int], Checked]  # by (round from 1 on, member); no answer: it failed


def verdict(plan: Sequence[Sequence[Pair]], answers: Answers) -> Verdict:
    """Who is to blame, after all rounds of this plan."""
    failed: List[Pair] = []
    partners: Dict[int, List[int]] = {}  # with whom a member failed
    well = set()
    for number, pairs in enumerate(plan, 1):
        for pair in pairs:
            if all(_passed(answers, number, member) for member in pair):
                well |= set(pair)
            else:
                failed.append(pair)
                for member, other in (pair, pair[::-1]):
                    partners.setdefault(member, []).append(other)
    count = sum(len(pairs) for pairs in plan)
    members = {member for pairs in plan for pair in pairs for member in pair}
    culprits = sorted(one for one, others in partners.items() if one not in well and well & set(others))
    apart = [pair for pair in failed if well.issuperset(pair)] if len(members) > 2 and not culprits else []
    if apart and len(apart) <= max(MOST, len(members) // 10):
        order = [member for pairs in plan for pair in pairs for member in pair]  # the master comes first
        return Verdict(sorted({max(pair, key=order.index) for pair in apart}), failed, count, _between(apart))
    if len(culprits) > max(MOST, len(members) // 10):
        return Verdict([], failed, count, f"{len(culprits)} of {len(members)} members failed with both their partners, "
                       "too many at once to be the members' own fault: nobody is blamed")
    return Verdict(culprits, failed, count, _words(plan, answers, culprits, failed, count))


def _passed(answers: Answers, number: int, member: int) -> bool:
    answer = answers.get((number, member))
    return answer is not None and answer.passed


def _words(plan: Sequence[Sequence[Pair]], answers: Answers, culprits: List[int], failed: List[Pair],
           count: int) -> str:
    if not failed:
        return f"all {count} pairs passed"
    if culprits:
        return "; ".join(_charge(plan, answers, culprit) for culprit in culprits[:SHOWN])
    shown = ", ".join(f"{one} with {other}" for one, other in failed[:SHOWN])
    first = next(why for number, pairs in enumerate(plan, 1) for pair in pairs for member in pair
                 if (why := _why(answers, number, member)))
    return (f"{len(failed)} of {count} pairs failed (index {shown}: {first}), but that does not show whose fault it "
            "is: nobody is blamed")


def _between(apart: Sequence[Pair]) -> str:
    """Pairs that cannot reach each other, as others can."""
    shown = ", ".join(f"{one} with {other}" for one, other in apart[:SHOWN])
    return f"index {shown} failed, and each of them passed with another: one of each two is replaced"


def _charge(plan: Sequence[Sequence[Pair]], answers: Answers, culprit: int) -> str:
    """What one culprit did in each of its rounds: its own words, else its partner's."""
    said, partners = [], []
    for number, pairs in enumerate(plan, 1):
        for one, other in pairs:
            if culprit in (one, other):
                partner = other if one == culprit else one
                partners.append(f"index {partner}")
                said.append(_why(answers, number, culprit) or _why(answers, number, partner))
    return f"index {culprit} failed with {' and '.join(partners)}: {' / '.join(dict.fromkeys(said))}"


def _why(answers: Answers, number: int, member: int) -> str:
    """Why a member says that its round failed; empty if it passed."""
    answer = answers.get((number, member))
    if answer is None:
        return "no answer"
    return "" if answer.passed else answer.why[:WORDS] or "no reason given"


class Pairs:
    """The rounds as they are played: what each member is to do now, what has been answered."""

    def __init__(self, members: Sequence[int], host: str, port: int) -> None:
        self._plan = rounds(members)
        self._host = host  # of the store in which partners find each other
        self._port = port
        self._answers: Dict[Tuple[int, int], Checked] = {}
        self._expired = 0  # rounds that took too long
        self.round = 0  # 0: not begun
        self.released = False  # the ranks may start, whatever was found

    def order(self, member: int) -> Optional[PairOrder]:
        """What this member has to do in the round of now."""
        if not 1 <= self.round <= len(self._plan):
            return None
        for pair in self._plan[self.round - 1]:
            if member in pair:
                other = pair[1 - pair.index(member)]
                return PairOrder(self.round, pair.index(member), other, self._host, self._port)
        return None

    def take(self, member: int, answer: Checked) -> None:
        """A member's answer; those of rounds that are over count as well, as long as the verdict is not spoken."""
        if 1 <= answer.round <= len(self._plan):
            self._answers[answer.round, member] = answer

    def advance(self) -> bool:
        """Go on to the next round if this one is over; True if it has."""
        if self.over or (self.round > 0 and self.round > self._expired and self._waits()):
            return False
        self.round += 1
        return True

    def _waits(self) -> bool:
        return any((self.round, member) not in self._answers for pair in self._plan[self.round - 1] for member in pair)

    def expire(self) -> None:
        """Wait no longer for the answers of this round."""
        self._expired = self.round

    @property
    def over(self) -> bool:
        """Whether all rounds were played."""
        return self.round > len(self._plan)

    def verdict(self) -> Verdict:
        """Who is to blame, by the answers that have come."""
        return verdict(self._plan, self._answers)
