"""From a recipe to networks and a plan: built, quantized, cut into stages, and rehearsed before the first batch."""
