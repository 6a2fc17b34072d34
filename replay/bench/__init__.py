"""The figures of the product, as ratios in one run."""
