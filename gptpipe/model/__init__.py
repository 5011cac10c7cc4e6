"""The GPT: its layers, its loss, and the precision of what is computed.

May import: config and what is below it.
"""
