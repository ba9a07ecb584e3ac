#!/bin/sh
# What `make quickstart` runs: a first task on this machine, then what to try next.
set -eu
sky=${1:-sky}
here=$(dirname "$0")
"$sky" launch -y -c hello "$here/hello.yaml"
bin=$(dirname "$(command -v "$sky")")
cat <<END

That was a real cluster on this machine. Try next:
  export PATH="$(cd "$bin" && pwd):\$PATH"
  sky status                          # your clusters
  sky exec hello -- 'echo again'      # another job on the same cluster, at once
  sky logs hello                      # the latest job's log
  sky events hello                    # what happened, step by step
  sky launch examples/multinode.yaml  # three nodes, one rank each
  sky down hello                      # take it down
  sky dashboard                       # the workflows, in your browser
END
