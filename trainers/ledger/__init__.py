"""Ledger of the runs of a sweep, stored in an SQLite file or a PostgreSQL database."""
