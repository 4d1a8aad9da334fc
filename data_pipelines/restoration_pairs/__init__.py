"""A tensorflow_datasets builder for pairs of images, or clean ones, in any layout that `prepare` knows."""
