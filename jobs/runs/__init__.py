"""Takes a spec to a finished run, and makes finished runs grow.

resolve         a spec becomes a resolved run: its model, directions, edits and stages, found and checked
precision       the precision of a new run whose spec leaves it open
inspection      the texts, labels and nets that measuring needs
draws           the labels of a source's images, and the edits that they draw
run_file        the shape of run.json
record          run.json: written at plan time, compared by every later session
run             a run from end to end: resolve, plan or resume, compute, report
growth          `asyrp retry` and `asyrp extend`: more shards for an existing run
estimate        the cost of a run, before it starts (`asyrp plan`)
session         a session of a run with its tables, for the commands that edit
experiment_log  sends the progress of a session to W&B or MLflow
"""
