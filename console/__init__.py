"""The operator's console: a server of pages. Imports what it asks and does from `shared`; no page makes a decision."""
