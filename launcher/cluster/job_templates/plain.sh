#!/usr/bin/env bash
# Ray on plain machines, for longreel. Every machine has the same packages, and storage that all see.
#   on one:         bash THIS.sh head
#   token:          copy ~/.ray/auth_token from there to the others and to where you submit from, mode 0600
#   on the others:  bash THIS.sh worker HEAD          they may come and go
#   from anywhere:  longreel submit RUN.yaml --address http://HEAD:%{dashboard}
# What follows is passed on to `ray start`: bash THIS.sh head --num-cpus=64 --num-gpus=8 lets ranks run on the head too.
set -euo pipefail
export PATH=%{binaries}:"$PATH"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}"
export %{settings}

case "${1:-}" in
head)
  if [ ! -s "$RAY_AUTH_TOKEN_PATH" ]; then
    (umask 077 && mkdir -p "$(dirname "$RAY_AUTH_TOKEN_PATH")" &&
      od -An -N32 -tx1 /dev/urandom | tr -d ' \n' > "$RAY_AUTH_TOKEN_PATH")
  fi
  chmod 600 "$RAY_AUTH_TOKEN_PATH"
  exec ray start --head --block --disable-usage-stats --port=%{port} \
    --dashboard-host=0.0.0.0 --dashboard-port=%{dashboard} --num-cpus=0 --num-gpus=0 "${@:2}"
  ;;
worker)
  : "${2:?the head: bash $0 worker HEAD}"
  if [ ! -s "$RAY_AUTH_TOKEN_PATH" ]; then
    echo "no token: copy $RAY_AUTH_TOKEN_PATH from $2, mode 0600" >&2
    exit 2
  fi
  # a node that was cut off ends its Ray when it hears that it was given up: it joins again
  until ray start --address="$2:%{port}" --block --disable-usage-stats "${@:3}"; do sleep 2; done
  ;;
*)
  echo "bash $0 head | worker HEAD" >&2
  exit 2
  ;;
esac
