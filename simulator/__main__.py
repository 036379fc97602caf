"""Runs the simulator as a process: `python -m simulator`."""

from simulator.main import main

if __name__ == "__main__":
    raise SystemExit(main())
