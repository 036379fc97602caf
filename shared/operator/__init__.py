"""What the operator asks and does: for the command line and the console. Knows no terminal and no HTML."""
