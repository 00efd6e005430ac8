"""Tables, progress bars and notebook views of results.

Imports errors only.
"""
