"""The task, image classification: the shape of its data, a batch, and how outputs are scored."""
