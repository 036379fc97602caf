"""The ground floor: the pure core of a call, and what two processes need. Imports none of the processes."""
