"""What people run: specs, runs, reports, schedules and the `asyrp` command.

spec/      specs of runs and data jobs, checked
runs/      from a spec to a finished run
learn/     directions and intervals learned from a source
results/   reports and measurements of finished runs
targets/   runs and schedules as files for other systems
schedule/  the ticks of data jobs
cli/       the `asyrp` command
display    output on the terminal: progress, tables, JSON
examples/  the YAML of jobs and of a run
"""
