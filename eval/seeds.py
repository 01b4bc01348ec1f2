"""What each range of environment seeds is for: no result is measured on seeds that a choice used.

- Below 1,000,000: training.
- 1,000,000 to 1,999,999: development. Checkpoints and settings are chosen on them, so that figures
  on them are a little too good.
- 2,000,000 to 2,499,999: audits, which look at what the report may have missed.
- From 2,500,000 on: the final run of a release, `eval.run --final`. Each release takes the next
  range of `FINAL_RANGE` seeds and writes it down here. A range that was looked at is development.
"""

TRAINING_SEEDS = range(0, 1_000_000)
DEVELOPMENT_SEEDS = range(1_000_000, 2_000_000)
FIRST_FINAL_SEED = 2_500_000
FINAL_RANGE = 10_000
FINAL_SEEDS = {"0.1.0": FIRST_FINAL_SEED}
"""Release -> its first seed. Add a line for each release; never take one away."""


def first_seed(chosen: int | None, *, final: bool) -> int:
    """The first environment seed of an evaluation.

    Args:
        chosen: What the user named; None takes the usual one.
        final: Whether this is the final run of a release.

    Raises:
        ValueError: If the seed belongs to training, or to final runs and this is none.
    """
    if final:
        if chosen is not None:
            raise ValueError(
                f"first_seed={chosen} cannot be chosen in a final run; leave it out, eval/seeds.py "
                "says which seeds are next"
            )
        return max(FINAL_SEEDS.values())
    seed = DEVELOPMENT_SEEDS.start if chosen is None else chosen
    if seed < DEVELOPMENT_SEEDS.start:
        raise ValueError(
            f"first_seed={seed} belongs to training; use {DEVELOPMENT_SEEDS.start} or more"
        )
    if seed >= FIRST_FINAL_SEED:
        raise ValueError(
            f"first_seed={seed} is kept for the final run of a release; use a seed below "
            f"{FIRST_FINAL_SEED}, or --final"
        )
    return seed
