"""Prefect flows, one file each: thin, they call gptpipe and hold no logic of their own."""
