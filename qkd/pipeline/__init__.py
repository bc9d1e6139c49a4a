"""What the commands do: train a recipe, export a run, benchmark and evaluate files, allocate bits, sweep and search."""
