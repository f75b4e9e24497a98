"""How a run goes: the loop, schedules, precision, averaging and checkpoints."""
