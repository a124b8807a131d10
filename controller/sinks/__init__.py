"""Sinks: each follows the stored events with a cursor of its own and hands them to a receiver elsewhere.

The formats (`jsonl`, `syslog`, `webhook`, `hec`, `csv_rows`) and the course of a delivery (`delivery`) are
pure; `follower` runs a delivery against a source and a cursor, `syslog_tls` and `https` carry the bytes.
"""
