"""The engine: phases, epochs, batches, steps; what a plan says, whichever method wrote it."""
