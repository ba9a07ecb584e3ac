package lab

import (
	"fmt"
	"strings"
)

// nvidiaSMI is a stand-in for nvidia-smi that knows the given GPUs: -L, --query-gpu with --format and -i,
// --query-compute-apps (none run), and the table. It is plain sh: a host may have nothing else.
func nvidiaSMI(gpus []fakeGPU) string {
	var names, mems []string
	for _, g := range gpus {
		names = append(names, fmt.Sprintf("%d) echo 'NVIDIA %s';;", g.index, g.name))
		mems = append(mems, fmt.Sprintf("%d) echo %d;;", g.index, g.memoryMB))
	}
	return strings.NewReplacer("@COUNT@", fmt.Sprint(len(gpus)), "@NAMES@", strings.Join(names, "\n"), "@MEMS@", strings.Join(mems, "\n")).Replace(`#!/bin/sh
# nvidia-smi of a host whose GPUs are only told of.
count=@COUNT@ query= head=1 units=1 list= only=
name() { case $1 in
@NAMES@
esac; }
mem() { case $1 in
@MEMS@
esac; }
while [ $# -gt 0 ]; do
  case $1 in
    -L|--list-gpus) list=1;;
    -i) only=$2; shift;;
    -i=*|--id=*) only=${1#*=};;
    --query-gpu=*) query=${1#*=};;
    --query-compute-apps=*) exit 0;;
    --format=*) case $1 in *noheader*) head=;; esac; case $1 in *nounits*) units=;; esac;;
  esac
  shift
done
each() { i=0; while [ $i -lt $count ]; do case ",$only," in ,,|*,$i,*) echo $i;; esac; i=$((i+1)); done; }
if [ "$list" ]; then
  for i in $(each); do echo "GPU $i: $(name $i) (UUID: GPU-$(printf '%08x' $i)-0000-4000-8000-000000000000)"; done
  exit 0
fi
with() { if [ "$units" ]; then echo "$1 $2"; else echo "$1"; fi; }
value() { case $2 in
  index) echo $1;;
  count) echo $count;;
  name|gpu_name) name $1;;
  uuid|gpu_uuid) echo "GPU-$(printf '%08x' $1)-0000-4000-8000-000000000000";;
  memory.total|memory.free) with $(mem $1) MiB;;
  memory.used) with 0 MiB;;
  utilization.gpu|utilization.memory) with 0 %;;
  driver_version) echo 550.54.15;;
  compute_cap) echo 8.0;;
  pci.bus_id|gpu_bus_id) printf '00000000:%02X:00.0\n' $((1+$1));;
  temperature.gpu) echo 30;;
  *) echo '[N/A]';;
esac; }
if [ "$query" ]; then
  fields=$(echo "$query" | tr ',' ' ')
  if [ "$head" ]; then
    line=; for f in $fields; do
      case $f in memory.*) [ "$units" ] && f="$f [MiB]";; utilization.*) [ "$units" ] && f="$f [%]";; esac
      line="$line${line:+, }$f"; done; echo "$line"
  fi
  for i in $(each); do line=; for f in $fields; do line="$line${line:+, }$(value $i $f)"; done; echo "$line"; done
  exit 0
fi
echo "| NVIDIA-SMI 550.54.15   Driver Version: 550.54.15   CUDA Version: 12.4 |"
for i in $(each); do echo "| $i  $(name $i) | 0MiB / $(mem $i)MiB | 0% |"; done
`)
}

// deviceCount is cuda-device-count, which prints how many GPUs a CUDA program would see: all, or those of
// CUDA_VISIBLE_DEVICES up to the first that does not exist.
func deviceCount(n int) string {
	return fmt.Sprintf(`#!/bin/sh
count=%d
[ "${CUDA_VISIBLE_DEVICES+set}" ] || { echo $count; exit 0; }
n=0
for d in $(echo "$CUDA_VISIBLE_DEVICES" | tr ',' ' '); do
  case $d in *[!0-9]*|'') break;; esac
  [ $d -lt $count ] || break
  n=$((n+1))
done
echo $n
`, n)
}

type fakeGPU struct {
	index, memoryMB int
	name            string
}
