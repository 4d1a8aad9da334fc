"""MPerceiver, all-in-one image restoration, in JAX."""
