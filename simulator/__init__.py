"""A simulated Asterisk for development and tests; no part of the product's processes."""
