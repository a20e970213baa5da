"""Noise, preconditioning, the training loss and the solvers; independent of the network."""
