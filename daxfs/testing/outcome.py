"""What one part of the testing tells: figures for people and machines, and each failure."""

import json
from dataclasses import asdict, dataclass, field

Figure = int | float | str


@dataclass
class Outcome:
    """The result of one part, for example ``explore``."""

    part: str
    figures: dict[str, Figure] = field(default_factory=dict)
    """By name, units in the name: ``states``, ``states_per_s``, ``seed``."""
    failures: list[str] = field(default_factory=list)
    """One line for each failure: what went wrong, and the command that shows it again."""

    def to_json(self) -> str:
        """This outcome as one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> "Outcome":
        """What ``to_json`` wrote."""
        return cls(**json.loads(line))

    def rows(self) -> list[tuple[str, str]]:
        """The figures as (name, value) for a table."""
        return [(name.replace("_", " "), _text(value)) for name, value in self.figures.items()]


def _text(value: Figure) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.1f}" if isinstance(value, float) else value
