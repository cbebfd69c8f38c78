#!/usr/bin/env bash
%{sbatch}
# longreel on Slurm:  sbatch THIS.sh
# Before the time is up, or when the job is preempted, it saves a checkpoint and puts itself into the queue again.
# Stop it with a last checkpoint:  scancel --batch --signal=TERM JOB
set -euo pipefail
export PATH=%{binaries}:"$PATH"
export STATE=%{folder}/"slurm-$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}"
export %{settings} RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=%{join_seconds}

# Ray asks for a token, which is this job's alone
(umask 077 && mkdir -p "$STATE" && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' > "$STATE/token")
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$STATE/token"

cat > "$STATE/run.yaml" << '%{end}'
%{run}
%{end}

HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# on a machine itself its name often means 127.0.1.1
ADDRESS=$(srun --nodes=1 --ntasks=1 --nodelist="$HEAD" hostname -I | cut -d " " -f 1)
export HEAD ADDRESS
export NODES="$SLURM_JOB_NUM_NODES" RESOURCES="--num-cpus=%{cpus} --num-gpus=%{gpus}"
export TRAIN='echo $$ > "$STATE/pid"; exec longreel train "$STATE/run.yaml" --address auto'

# on every node: the first starts the head and the run; the others join, and join again if their Ray ends
task='
cluster() { ray symmetric-run --address "$ADDRESS:%{port}" --min-nodes "$NODES" $RESOURCES -- "$@"; }
if [ "$SLURM_PROCID" = 0 ]; then
  code=0
  cluster bash -c "$TRAIN" || code=$?
  echo "$code" > "$STATE/code.new"; mv "$STATE/code.new" "$STATE/code"
  exit "$code"
fi
until [ -e "$STATE/code" ]; do cluster true || true; sleep 5; done
'
again=no
stop() { srun --overlap --nodes=1 --ntasks=1 --nodelist="$HEAD" kill -TERM "$(cat "$STATE/pid")" || true; }
trap 'again=yes; stop' USR1
trap 'stop' TERM

srun --no-kill bash -c "$task" &
step=$!
until [ -e "$STATE/code" ] || ! kill -0 "$step" 2> /dev/null; do sleep 1; done
code=$(cat "$STATE/code" 2> /dev/null || echo 1)
kill "$step" 2> /dev/null || true  # workers would notice the end of their head only after a minute
rm -rf "$STATE"
if [ "$code" = 75 ] && [ "$again" = yes ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
