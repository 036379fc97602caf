"""The listener process: receives ARI events over websockets and pushes them to the broker."""
