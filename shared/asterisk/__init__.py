"""Everything about an Asterisk: its events, requests to it, how it is reached, and what its configuration files need."""
