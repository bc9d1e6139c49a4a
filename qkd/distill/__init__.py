"""The pieces a distillation method is made of: taps, losses, targets, terms, heads, exchanges, schedules and plans."""
