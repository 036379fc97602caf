"""The stand-in of the platform's API: `python -m devstack.platform_api`. For development and tests, not the product.

It does what the platform (Dograh) does beside us, in either layout: makes its tables, originates calls, serves media
legs, ends runs, transfers callers, counts calls in its Redis, and answers as its quota service. It shares no code with
the product's adapter: one checks the other.
"""
