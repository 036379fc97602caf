"""The thin listeners: ARI event sockets in, broker messages out."""
