"""What every process is built of: settings, logs, start and stop, liveness, sealing, clocks."""
