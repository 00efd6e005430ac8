"""Where a ledger's rows are kept: an SQLite file, or a PostgreSQL database."""
