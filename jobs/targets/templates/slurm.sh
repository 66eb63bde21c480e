# The first node of the job runs this script, the Ray head and the command, which is of asyrp; $run is where they meet.
run=$(mktemp -d)
trap 'rm -rf "$run"' EXIT
printf '%s' "$spec" > "$run/spec.yaml"

# USR1 comes before the time limit, to this shell alone. Only the command is told to stop: it finishes and commits the
# shards in flight, for which it needs Ray, and ends with 130.
drain() {
    interrupted=yes
    again=yes
    kill -TERM "$(cat "$run/pid" 2> /dev/null || echo "$step")"
}
again=no
trap drain USR1

# Ray lets in who has the token, and this one is known to the processes of this job only.
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN

# Where nodes do not reach each other by the first address of the first node, set `head` to one that they do.
head=$(hostname -I | cut -d ' ' -f 1)
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300
srun --cpu-bind=none ray symmetric-run --address "$head:6379" --min-nodes "$nodes" --num-cpus "$cpus" --num-gpus "$gpus" \
    -- bash -c 'echo $$ > "$0" && exec "$@"' "$run/pid" "${command[@]}" "$run/spec.yaml" &
step=$!
interrupted=yes
while [ "$interrupted" = yes ]; do # a signal ends `wait` before the step has ended
    interrupted=no
    wait "$step"
    code=$?
done

# Out of time, not done: back into the queue. The same script goes on from what is committed.
if [ "$code" = 130 ] && [ "$again" = yes ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
