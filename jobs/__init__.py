"""What people and schedulers run: the command line, the demo, training. Read cli.py first."""
