"""What the controller keeps: `database` for the fleet's state, `events` for the audit trail.

Layout of the store's directory::

    lock                          held by the controller that has the store open
    control.db                    the fleet's state; the modules beside this one read and write its tables
    events/000001-2026-11-22.db   the events taken in on one day (UTC); see `days`

Every table is reached through plain functions that take a connection, so that several of them can be one
transaction: ``database.write(function, ...)`` runs its function in the one thread that writes.
"""
