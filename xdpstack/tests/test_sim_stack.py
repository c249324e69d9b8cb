"""Two stacks over a simulated wire of frames, and users who may abort: what holds for every seed.

As ``test_sim.py``, a floor higher: neighbours to be found, listeners with small backlogs, several connections
at once, and users who close early, leave bytes unread, abort at any time or read a little at a time.
`XDS_TCP_SEEDS=10000` runs more of them.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest
from hypothesis import Phase, given, seed, settings
from hypothesis import strategies as st

from xdpstack.errors import CapacityError
from xdpstack.sim import SECOND
from xdpstack.tests.stack_driver import B, Two, never
from xdpstack.tests.test_sim import pattern, wires

SEEDS = int(os.environ.get("XDS_TCP_SEEDS", "500"))
RUN: Counter[str] = Counter()
ERRORS = {"reset", "refused", "timeout", "unreachable"}
PLANS = ("both", "both", "both", "early", "abort before", "abort writing", "abort reading")


class User:
    """One end of a connection. ``plan``: until when it goes on; ``at``: so many bytes."""

    def __init__(self, end, number, text, plan, at, reads):
        self.end, self.number, self.text, self.plan, self.at = end, number, text, plan, at
        self.reads, self.got, self.written, self.asked = reads, bytearray(), 0, 0
        self.shut = self.aborted = self.gone = False

    @property
    def seen(self):
        return self.end.seen.setdefault(self.number, set())

    @property
    def said(self):
        """Everything that it wrote."""
        return self.text[: self.written] + b"?" * self.asked

    def read(self, most):
        while piece := self.end.stack.read(self.number, most):
            self.got += piece
            most -= len(piece)
            if most <= 0:
                return

    def act(self, now):
        if self.gone:
            return
        if self.seen & ERRORS:
            self.read(1 << 20)
            self.let_go(now)
        elif self.plan == "abort before":
            self.abort(now)
        elif "open" in self.seen:
            self.go_on(now)

    def go_on(self, now):
        stack = self.end.stack
        self.read(self.reads)
        if not self.shut and self.written < len(self.text):
            self.written += stack.write(self.number, self.text[self.written :])
        if (self.plan == "abort writing" and self.written >= self.at) or (
            self.plan == "abort reading" and len(self.got) >= self.at
        ):
            self.abort(now)
        elif self.plan == "early" and self.written >= min(self.at, len(self.text)):
            self.shut = True
            self.let_go(now)
        elif self.written == len(self.text) and not self.shut:
            stack.shutdown(self.number)
            self.shut = True
        elif "closed" in self.seen:
            self.read(1 << 20)
            self.let_go(now)

    def abort(self, now):
        self.aborted = True
        self.end.stack.abort(self.number)
        self.let_go(now)

    def let_go(self, now):
        self.end.stack.close(self.number, now)
        self.gone = True

    def ask(self, now):
        """Nothing moves any more: a peer that is gone says so to who sends, or is waited for no longer."""
        if self.gone:
            return
        self.read(1 << 20)
        if self.shut or "fin" in self.seen:
            self.let_go(now)
        else:
            self.asked += self.end.stack.write(self.number, b"?")


class Several:
    """Callers at a, whoever is accepted at b, and how they belong together."""

    def __init__(self, number, ways, callers, backlog, places, known):
        ends = [{"connections": count, "msl_ns": SECOND} for count in places]
        self.two = Two(ways, number, a=ends[0], b=ends[1], known=known)
        self.listener = self.two.b.stack.listen(80, backlog=backlog)
        self.callers, self.answers, self.called = [], {}, {}
        self.refused = 0
        for n, (mine, theirs) in enumerate(callers):
            try:
                one = self.two.a.stack.connect((B, 80), self.two.now)
            except CapacityError:
                self.refused += 1
                continue
            text = pattern(mine[0], number + 2 * n)
            self.callers.append(User(self.two.a, one, text, *mine[1:]))
            self.answers[self.two.a.stack.ends(one)[0]] = (
                pattern(theirs[0], number + 2 * n + 1),
                *theirs[1:],
            )
            self.called[self.two.a.stack.ends(one)[0]] = self.callers[-1]
        self.pairs = []
        self.two.act = self.act

    def act(self):
        two = self.two
        while self.listener and (taken := two.b.stack.accept(self.listener)):
            two.b.seen.setdefault(taken, set()).add("open")
            caller = two.b.stack.ends(taken)[1]
            user = User(two.b, taken, *self.answers[caller])
            self.pairs.append((self.called[caller], user))
        for user in [*self.callers, *(other for _, other in self.pairs)]:
            user.act(two.now)

    def run(self):
        """Until nothing happens; who is left then asks, and lets go."""
        self.two.run()
        for _ in range(3):
            for user in [*self.callers, *(other for _, other in self.pairs)]:
                user.ask(self.two.now)
            self.two.run()
        self.two.b.stack.unlisten(self.listener)
        self.listener = 0
        self.two.run()
        return self

    def tally(self):
        """What happened, so that a test can say that something did."""
        both = [user for pair in self.pairs for user in pair]
        RUN.update("accepted" for _ in self.pairs)
        RUN.update(
            word for user in [*self.callers, *(other for _, other in self.pairs)] for word in user.seen
        )
        RUN.update("aborted" for user in both if user.aborted)
        RUN.update("whole" for user in both if "closed" in user.seen)
        RUN["no place"] += self.refused
        for end in (self.two.a, self.two.b):
            stats = end.check()
            RUN.update({word: n for word, n in stats["reasons"].items()})
        return self

    def check(self):
        for one, two in self.pairs:
            for user, other in ((one, two), (two, one)):
                assert bytes(user.got) == other.said[: len(user.got)], "not those bytes"
                if "closed" in user.seen and not user.aborted:
                    assert bytes(user.got) == other.said, "bytes are missing, and nobody said so"
                if other.aborted and not user.aborted and "closed" not in user.seen and user.plan != "early":
                    assert user.seen & ERRORS or user.shut, "it was left without a word"
        for user in self.callers:
            assert user.gone, f"waits for ever: {user.plan}, {user.seen}, {user.end.stack.info(user.number)}"
        for end in (self.two.a, self.two.b):
            stats = end.check()
            assert stats["connections"] == stats["time_waits"] == 0
            assert never(end), "a timer was left"
        for number, end in enumerate((self.two.a, self.two.b)):
            way = self.two.sim.way(number)
            assert way["sent"] + way["duplicated"] == way["lost"] + way["carried"], "a frame vanished"
            assert (self.two.a, self.two.b)[1 - number].host.stats()["received"] == way["carried"]
            assert end.host.stats()["held"] >= end.host.stats()["held_lost"]
        return self


users = st.tuples(
    st.sampled_from([0, 1, 700, 20_000]),
    st.sampled_from(PLANS),
    st.sampled_from([0, 1, 500, 5000]),
    st.sampled_from([700, 65536]),
)


@pytest.mark.timeout(300 + SEEDS)
@seed(20261128)
@settings(max_examples=SEEDS, deadline=None, database=None, phases=[Phase.explicit, Phase.generate])
@given(
    number=st.integers(0, 2**32 - 1),
    ways=st.tuples(wires, wires),
    callers=st.lists(st.tuples(users, users), min_size=1, max_size=6),
    backlog=st.sampled_from([1, 2, 16]),
    places=st.tuples(st.sampled_from([2, 8]), st.sampled_from([2, 8])),
    known=st.booleans(),
)
def test_every_seed_of_users_who_abort_ends_with_their_bytes_or_a_word(
    number, ways, callers, backlog, places, known
):
    Several(number, ways, callers, backlog, places, known).run().check().tally()


def test_all_of_that_happened(capsys):
    """Said even where the output of tests that pass is not shown."""
    if not RUN:
        pytest.skip("the test of every seed was not run")
    with capsys.disabled():
        print(f"\n{SEEDS:,} seeds over two simulated stacks: {dict(RUN.most_common())}")
    wanted = ("accepted", "aborted", "whole", "reset", "no place", "no_connection", "cookie")
    assert all(RUN[word] for word in wanted), RUN
