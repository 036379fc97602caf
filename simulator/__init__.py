"""An Asterisk for development and tests: ARI over HTTP and websocket, callers, external media, and faults on demand.

It keeps to what was measured on Asterisk 22.10; several may run in one process. It knows nothing of the pipeline.
"""
