"""What carries an algorithm through Lightning: how updates run, what stops a run, what a checkpoint holds."""
