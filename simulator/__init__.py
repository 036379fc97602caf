"""An Asterisk for development and tests: ARI over HTTP and websocket, callers, external media, and faults on demand.

It behaves as measured on Asterisk 22.10; several can run in one process. It knows nothing of the pipeline.
"""
