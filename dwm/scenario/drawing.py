"""How the parameters of a family are drawn from a severity and a seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One number: from ``low`` at severity 0 to ``high`` at severity 1, or, ``anywhere``, uniform between the two."""

    low: float
    high: float
    anywhere: bool = False
    either_sign: bool = False
    about: float = 0.0  # added last
    whole: bool = False  # rounded to an integer

    def draw(self, severity: float, rng: np.random.Generator) -> float:
        sign = float(rng.choice([-1.0, 1.0])) if self.either_sign else 1.0
        value = rng.uniform(self.low, self.high) if self.anywhere else self.low + (self.high - self.low) * severity
        drawn = self.about + sign * float(value)
        return float(round(drawn)) if self.whole else drawn


def anywhere(low: float, high: float) -> Parameter:
    """Uniform between two values, whatever the severity."""
    return Parameter(low=low, high=high, anywhere=True)


def severe(low: float, high: float, *, either_sign: bool = False, about: float = 0.0, whole: bool = False) -> Parameter:
    """Grows with the severity."""
    return Parameter(low=low, high=high, either_sign=either_sign, about=about, whole=whole)


EITHER_SIDE = Parameter(low=1.0, high=1.0, either_sign=True)  # 1 left, -1 right


def drawn(**parameters: Parameter) -> dict[str, Any]:
    """What a family needs to know of its parameters: their names, and how all are drawn, in this order."""

    def sample(severity: float, rng: np.random.Generator) -> dict[str, float]:
        return {name: parameter.draw(severity, rng) for name, parameter in parameters.items()}

    return {"parameters": tuple(parameters), "sample": sample}
