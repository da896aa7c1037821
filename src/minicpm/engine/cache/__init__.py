"""Keys and values of all texts within one budget: blocks that texts share, and the same under a sliding window."""
