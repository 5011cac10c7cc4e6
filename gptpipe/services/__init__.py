"""Servers on this machine, what the doctor asks of them, and this machine as a worker.

May import: tracking and export, and what is below them.
"""
