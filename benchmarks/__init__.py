"""How fast, and compared to what: as ratios within one run.

    python -m benchmarks.train_step     a training step of the dual branch, and its UNet compared with PyTorch's
    python -m benchmarks.sample         restoring images, with several samplers
    python -m benchmarks.encode         the frozen towers: VAE encoder and decoder, CLIP
    python -m benchmarks.unet           the UNet alone, compared with diffusers' in PyTorch

All take `--variant=small|sd21 --size --batch --dtype --output=FILE.json` and run on any device, on random
weights and without data. Figures measured so far: docs/results.md.
"""
