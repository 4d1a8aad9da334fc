"""A tensorflow_datasets builder for pairs of pictures, or clean ones, in any layout that `prepare` knows."""
