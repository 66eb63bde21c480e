"""What people write down: the specs of runs and of data jobs, checked.

paths         paths and URLs in a spec: absolute and without credentials
yaml_lines    reads all YAML that people give: within limits, with the line of each field
mistakes      errors of validation as sentences
ends          the forms in which a spec gives the end of an edit, `t_edit`
inspection    the part of a spec that says what is measured
augmentation  the part of a spec that says which edits images draw
run           the spec of a run
schedule      a cron schedule and its ticks
job           the spec of a data job: a run, a schedule and a data set
"""
