"""The voice-agent platform: neutral ports, and one folder for each adapter."""
