"""What the rows of the ops are made of: rooms and cases, peers, checks, targets."""
