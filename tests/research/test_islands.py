"""Islands: populations within a campaign that breed apart, and what they are compared with."""

import random

import pytest

from stages.errors import UserError
from stages.research.compare import compare
from stages.research.islands import on_island
from stages.research.replay import replay, seen_on_table
from stages.research.researchers import make_researcher
from stages.research.researchers.programs import ProgramsResearcher
from stages.research.stage import fingerprint
from stages.research.view import Seen, View
from stages.scoring.settings import settings
from tests.research.test_table import a_table

BATCH = 8


def members(seen: list[Seen], slot: int, n: int, every: int) -> list[int]:
    """Slots on the island of ``slot``: simulated forwards in time, one slot after the other."""
    islands: list[dict[int, float | None]] = [{} for _ in range(n)]
    known = slot // BATCH * BATCH
    for now in range(known + 1):
        if now and now % every == 0:
            leave = []
            for there in islands:
                scored = {one: value for one, value in there.items() if value is not None}
                leave.append(max(scored.items(), key=lambda one: (one[1], -one[0])) if scored else None)
            for at, one in enumerate(leave):
                if one is not None:
                    islands[(at + 1) % n][one[0]] = one[1]
        if now < known:
            islands[now % n][now] = next((one.value for one in seen if one.slot == now), None)
    return sorted(set(islands[slot % n]) & {one.slot for one in seen})


class Watched(ProgramsResearcher):
    """Remembers what it was shown."""

    def __init__(self, *given, **named) -> None:
        super().__init__(*given, **named)
        self.views: dict[int, View] = {}
        self.parents: dict[int, tuple[int, ...]] = {}

    def propose(self, view, slot):
        move = super().propose(view, slot)
        self.views[slot], self.parents[slot] = view, move.parents
        return move


@pytest.mark.parametrize(("n", "every"), [(2, 16), (3, 8), (4, 12), (8, 16), (5, 7)])
def test_parents_come_from_the_own_island_and_from_what_migrated_to_it(n, every):
    author = Watched(3, islands=n, every=every)
    replay(author, a_table(1), 72)
    for slot, view in author.views.items():
        here = members(list(view.seen), slot, n, every)
        assert [one.slot for one in on_island(view, slot, n, BATCH, every).seen] == here
        assert set(author.parents[slot]) <= set(here)
    bred = [slot for slot, parents in author.parents.items() if parents]
    assert {slot % n for slot in bred} == set(range(n)), "an island never bred"
    foreign = [slot for slot in bred if any(parent % n != slot % n for parent in author.parents[slot])]
    assert foreign and min(foreign) >= every, "nobody migrated, or before it was time"


def test_who_has_no_value_does_not_migrate_and_of_equals_the_earlier_does():
    table, rng = a_table(0), random.Random(0)
    author, seen = ProgramsResearcher(0), []
    for slot in range(16):
        move = author.propose(View(slot=slot, seen=(), pending=()), slot)
        one = seen_on_table(table, slot, move).seen
        value = None if slot in (1, 3, 5) else [0.1, 0.2][rng.random() < 0.5]
        seen.append(one.model_copy(update={"value": value}))
    for slot in range(16, 24):
        here = on_island(View(slot=slot, seen=tuple(seen), pending=()), slot, 4, BATCH, 16).seen
        assert [one.slot for one in here] == members(seen, slot, 4, 16)


def test_one_island_is_the_view_itself_and_nothing_of_a_batch_that_is_not_judged_counts():
    view = View(slot=3, seen=(), pending=())
    assert on_island(view, 3, 1, BATCH) is view
    moves = {}
    for n in (1, 4):
        author = Watched(5, islands=n)
        replay(author, a_table(2), 40)
        moves[n] = author.parents
        assert author.told == ("" if n == 1 else "4 islands, every 16")
    assert moves[1] != moves[4]


def test_what_another_island_has_tried_is_not_proposed():
    table, author, first = a_table(0), ProgramsResearcher(0, islands=4, every=999), ProgramsResearcher(1)
    empty = View(slot=0, seen=(), pending=())
    seen = [seen_on_table(table, slot, first.propose(empty, slot)).seen for slot in range(16)]
    wanted = author.propose(View(slot=16, seen=tuple(seen), pending=()), 16)
    seen[1] = seen[1].model_copy(update={"choices": wanted.choices})
    assert author.propose(View(slot=16, seen=tuple(seen), pending=()), 16).choices != wanted.choices


def test_an_island_without_a_score_draws():
    table, first, author = a_table(0), ProgramsResearcher(1), ProgramsResearcher(0, islands=3, every=999)
    seen = []
    for slot in range(16):
        one = seen_on_table(table, slot, first.propose(View(slot=0, seen=(), pending=()), slot)).seen
        seen.append(one.model_copy(update={"value": None if slot % 3 == 1 else 0.1}))
    moves = {slot: author.propose(View(slot=slot, seen=tuple(seen), pending=()), slot) for slot in range(16, 40)}
    assert {move.operator for slot, move in moves.items() if slot % 3 == 1} == {"draw"}
    assert {move.operator for slot, move in moves.items() if slot % 3 != 1} > {"draw", "mutate"}


def test_who_has_no_islands_is_told_so():
    with pytest.raises(UserError, match="random has no islands; use --researcher programs"):
        make_researcher("random", 0, "programs", 2)
    with pytest.raises(UserError, match="none of random, policy has islands"):
        compare(["random", "policy"], a_table(), 8, 2, lambda said: None, islands=(1, 4))


def test_researchers_are_compared_with_each_number_of_islands():
    found = compare(["random", "programs"], a_table(), 16, 2, lambda said: None, islands=(1, 4))
    assert {row.researcher for row in found.rows} == {"random", "programs", "programs, 4 islands"}


def test_a_campaign_of_other_islands_is_another_campaign(graph):
    keys = [fingerprint(make_researcher("programs", 0, "programs", n), 1, settings()) for n in (1, 2, 3, 2)]
    assert len(set(keys)) == 3 and keys[1] == keys[3]
