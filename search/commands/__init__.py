"""The commands of search: propose, measure, report and doctor.

Imports reports, proposals and all layers below them.
"""
