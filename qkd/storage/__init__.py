"""What is kept on disk: run folders, checkpoints, caches; every write is atomic."""
