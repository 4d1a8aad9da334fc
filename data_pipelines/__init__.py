"""Training data: photographs, degradations, and the stream of batches. Numpy and grain only."""
