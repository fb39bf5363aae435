"""What the steps of one forward pass have in common."""

from collections.abc import Callable
from typing import Any


class StepCache(dict[str, Any]):
    """Values by name, kept from step to step and fresh at the start of every forward pass."""

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """The value of that name, made when it is first asked for."""
        if name not in self:
            self[name] = make()
        return self[name]

    def exchange(self, name: str, value: Any) -> Any:
        """The value of the step before, None at first; this one is kept for the next."""
        before = self.get(name)
        self[name] = value
        return before
