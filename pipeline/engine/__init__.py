"""The engine: one driver that gives shards to Ray actors, and the worker inside each actor.

Files in reading order:

- `driver`: which shard goes to which actor, and what happens after a failure
- `actors`: Ray actors around workers, and the driver's view of them
- `watchdog`: what a run may wait for, and for how long
- `cluster`, `machine`: joins or starts Ray, and looks at the cluster; what Ray needs of this machine
- `worker`: the reader, device and writer threads around one frozen net
- `reading`, `batches`, `device`, `transfers`, `threads`: what these threads work with
- `shard_attempt`: one shard on its way through a worker, up to its commit
- `shard_input`: the results of an earlier stage that a shard reads
- `signals`: the signals that ask a process to stop
- `telemetry`: metrics for Prometheus, through Ray
"""
