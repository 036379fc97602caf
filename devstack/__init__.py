"""What `make run` and the tests bring of their own: embedded servers, a real Asterisk, a voice agent."""
