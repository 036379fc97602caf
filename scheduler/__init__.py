"""The scheduler: keeps connections, event sockets and calls in step with what they should be."""
