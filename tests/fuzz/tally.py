"""What a fuzz counts: how each try ended."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field


class SilentChangeError(AssertionError):
    """Something was accepted and became something else."""


@dataclass
class Tally:
    """Counts of ends, and an example of each end that must not be.

    Attributes:
        accepted: Tries that went through, and came out as they went in.
        refused: Tries that ended in a ValueError.
        faults: Tries that ended otherwise, by the name of the exception.
        examples: One line for each kind of fault.
    """

    accepted: int = 0
    refused: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def attempt(self, name: str, action: Callable[[], None]) -> None:
        """Runs one try.

        Args:
            name: How to make it again, such as its seed.
            action: Raises ValueError where it refuses, `SilentChangeError` where it should have.
        """
        try:
            action()
        except ValueError as error:
            self.refused += 1
            if not str(error).strip():
                self._fault("ValueError without words", name, error)
        except Exception as error:  # whatever comes is counted
            self._fault(type(error).__name__, name, error)
        else:
            self.accepted += 1

    def _fault(self, kind: str, name: str, error: Exception) -> None:
        self.faults[kind] += 1
        self.examples.setdefault(f"{kind} {str(error)[:60]}", f"{name}: {kind}: {error}"[:300])

    def __str__(self) -> str:
        """A line of counts, then the examples."""
        counts = f"{self.accepted} accepted, {self.refused} refused, {sum(self.faults.values())} "
        counts += f"faults {dict(self.faults)}"
        return "\n".join([counts, *self.examples.values()])
