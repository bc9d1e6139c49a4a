"""Files on disk: run folders, checkpoints and caches, written atomically; and facts about the machine."""
