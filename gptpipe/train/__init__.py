"""What a rank runs: `python -m gptpipe.train JOB`, started by torchrun, itself started by `gptpipe.launch`.

May import: launch, generation and what is below them; neither Prefect nor MLflow.
"""
