"""App instances in SQL. What has a socket and events is one Stasis app on one Asterisk, not the connection's row.

Two connections of an organization may be one app instance: an earlier release made another connection of a
configuration that was removed and added again. The calls of either are found by the events of both.
"""

from __future__ import annotations

#: Each version `v` of a connection `c`, with each version `o` of the same organization in its app instance, itself
#: included.
VERSIONS = """
ari.connections c JOIN ari.connection_versions v USING (connection_id)
JOIN ari.connections s ON s.organization_id = c.organization_id
JOIN ari.connection_versions o ON o.connection_id = s.connection_id AND o.endpoint = v.endpoint AND o.app = v.app
"""

#: The connections of the same organization that have had an app instance in common with this one, itself included.
SHARING = f"SELECT o.connection_id FROM {VERSIONS} WHERE c.connection_id = %s"  # noqa: S608 - built from constants
