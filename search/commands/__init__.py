"""What the commands of search do: propose, measure, doctor.

Imports reports, proposals and what lies below.
"""
