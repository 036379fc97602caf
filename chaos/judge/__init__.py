"""The judge of a chaos run: a process of its own that imports nothing of this project.

It sees what an outsider can see: Asterisk's events and lists, the tables, the sockets of the kernel, and the recordings
of both ends of a call. So a mistake of the product's code is not repeated in the code that looks for it.
"""
