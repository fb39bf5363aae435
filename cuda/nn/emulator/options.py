"""Choices of a run that several places offer."""

MODES = ("fast", "check", "count")  # run; find faults; also count what decides speed
SCHEDULES = ("forward", "reverse", "random")  # order in which threads and blocks run
