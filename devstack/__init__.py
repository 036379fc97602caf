"""The development stack of `make run`, the tests and bench/: embedded servers, a real Asterisk, a voice agent."""
