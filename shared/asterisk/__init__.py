"""Everything about an Asterisk: its events, the requests to it, the connections, and its configuration files."""
