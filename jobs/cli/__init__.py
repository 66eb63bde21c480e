"""The `asyrp` command. Results go to stdout, everything else to stderr.

In reading order:

- `app`: the command with its groups, and `main`
- `options`, `fields`: options that commands share; options made from the fields of a spec
- `run_options`: the options of `run` and `plan`
- `runs`: `run`, `plan`, `demo`, `status`, `retry`, `extend`
- `evaluate`, `report`: measurements and reports after the fact
- `store`: `verify`, `gc`, `export`
- `models`, `directions/`, `intervals`: commands around a model
- `jobs`, `cluster`: jobs on a schedule; clusters and other systems
"""
