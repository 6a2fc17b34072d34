"""``tracepaper bench``: the product's figures, as ratios in one run."""
