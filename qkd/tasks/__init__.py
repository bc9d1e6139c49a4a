"""What a network is trained for: what it is told of the data, what a batch holds, how good an output is."""
