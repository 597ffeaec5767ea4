"""What the rows of whole models are made of: ours, the baselines, what they cost and hold."""
