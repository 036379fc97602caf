"""arictl: the operator's command line."""
