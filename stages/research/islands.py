"""Islands: several populations within one campaign, which exchange their best at fixed slots.

A slot belongs to the island ``slot % n``. Parents come from the own island, which holds what was proposed there and
what migrated to it. At every ``every`` slots the best of each island is sent to the next one (a ring). All of it is a
fold over the view: nothing is stored, and nothing hangs on the number of workers. Islands keep a search from breeding
everything from one early winner (Whitley et al. 1999, "The island model genetic algorithm", section 2).
"""

from stages.research.view import Seen, View, batch_start

__all__ = ["EVERY", "island_of", "on_island"]

EVERY = 16
"""Slots from one migration to the next: two batches of eight."""


def island_of(slot: int, n: int) -> int:
    """Which of ``n`` islands a slot belongs to."""
    return slot % n


def on_island(view: View, slot: int, n: int, batch: int, every: int = EVERY) -> View:
    """The view as the island of a slot has it: its own proposals, and those that came to it.

    Args:
        n: islands; with one the view is returned as it is.
        batch: slots that are proposed from the same results; a migration counts once all results before it are known.
        every: slots from one migration to the next.
    """
    if n == 1:
        return view
    came: list[dict[int, Seen]] = [{} for _ in range(n)]
    for moment in range(every, batch_start(slot, batch) + 1, every):
        best = [_best(view, came[island], island, n, moment) for island in range(n)]
        for island, one in enumerate(best):
            if one is not None:
                came[(island + 1) % n][one.slot] = one
    here = island_of(slot, n)
    return view.model_copy(
        update={
            "seen": tuple(one for one in view.seen if island_of(one.slot, n) == here or one.slot in came[here]),
            "pending": tuple(one for one in view.pending if island_of(one.slot, n) == here),
        }
    )


def _best(view: View, came: dict[int, Seen], island: int, n: int, moment: int) -> Seen | None:
    """Who leaves an island: of all that it has, what came to it before included."""
    there = [one for one in view.seen if one.slot < moment and (island_of(one.slot, n) == island or one.slot in came)]
    return max(
        (one for one in there if one.value is not None), key=lambda one: (one.value or 0.0, -one.slot), default=None
    )
