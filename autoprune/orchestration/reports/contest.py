"""A contest of searchers, in words and as a table."""

from rich.table import Table

from autoprune.domain.standings import RANDOM, Standings
from autoprune.orchestration.contest.records import Contest


def entry_line(contest: Contest) -> str:
    """The search that has just ended."""
    course = contest.entries[-1].course
    total = len(contest.searchers) * len(contest.seeds)
    return (
        f"{course.searcher:<12} seed {course.seed}  hypervolume {course.final:.4f} after "
        f"{len(course.hypervolume_T)} trials in {course.seconds:.0f} s  "
        f"({len(contest.entries)} of {total})"
    )


def standings_table(contest: Contest, standings: Standings) -> Table:
    """Every searcher with its mean, the interval of that, and how soon it passed random search.

    Speeds are those timed again at the end; ``told`` is the mean by what the searches measured.
    """
    seeds = len(standings.standings[0].hypervolume)
    over = "one seed" if seeds == 1 else f"{seeds} seeds"
    table = Table(title=f"Hypervolume over {over}, {contest.name}", title_justify="left")
    columns = (
        "searcher",
        "mean",
        "95% interval",
        "told",
        f"trials to {RANDOM}'s end",
        "seconds",
        "p",
    )
    for name in columns:
        table.add_column(name, justify="left" if name == "searcher" else "right")
    p = {duel.other: duel.p for duel in standings.duels}
    for standing in standings.standings:
        reached, interval = standing.trials_to_random_final, standing.ci95
        own = [entry.course.seconds for entry in contest.of(standing.searcher)]
        mean_s = sum(own) / len(own)
        found = p.get(standing.searcher)
        table.add_row(
            standing.searcher,
            f"{standing.mean:.4f}",
            "" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}",
            f"{sum(standing.told) / len(standing.told):.4f}",
            "" if reached is None else str(reached),
            f"{mean_s:.0f}",
            "" if found is None else f"{found:.3f}",
        )
    return table
