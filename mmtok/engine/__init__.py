"""Around training: checks before it, data that name their faults, checkpoints that survive."""
