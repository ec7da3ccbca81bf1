"""From `TokenScores` to exact integer sums, and from sums to one value, on any number of processes."""
