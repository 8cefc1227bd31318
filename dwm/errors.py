"""The one error a user can cause."""

from __future__ import annotations

from pathlib import Path


class InputError(ValueError):
    """Bad input, told in one line: where, what was found, and what to do about it.

    The command line prints the message and exits with 2; no stack trace reaches the user.
    """

    def __init__(self, where: str | Path, problem: str, fix: str) -> None:
        self.where, self.problem, self.fix = str(where), problem, fix
        super().__init__(f"{where}: {problem}; {fix}")

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str, str]]:
        return (InputError, (self.where, self.problem, self.fix))
