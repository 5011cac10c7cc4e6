"""What a rank runs: `python -m gptpipe.train JOB`, started by torchrun, itself started by `gptpipe.launch`.

Neither Prefect nor MLflow is imported here. `job` is what the launcher hands over and `__main__` the rank's
way in and out; `loop` is the training loop, `optimizer` the optimizer and its schedule, `resume` the state that
is saved and restored, `ranks` the little that is distributed, `stop` the ways to end early, `metrics` the line
a logged step, `peak` what the device could do at most.
"""
