"""The ticks of data jobs: does them, starts them and tells how they ended.

next_version  what a tick does: edits what is new or changed, and publishes the next version
notify        tells a webhook or a command how a tick ended
tick          one tick under its lease, with signals, the record and the notification
serve         the embedded scheduler (`asyrp jobs schedule serve`)
ray_jobs      a tick as a job of a running Ray cluster (`asyrp jobs submit`)
"""
