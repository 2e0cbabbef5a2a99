#!/bin/sh
# find_planted_race.sh BINARY MISTAKE...: passes when ThreadSanitizer reports each planted mistake within
# 20 runs and stays silent over 5 clean ones. (66 is TSan's exit code for a report.)
set -u
binary=$1
shift
for run in 1 2 3 4 5; do
  "$binary" clean || { echo "the clean program was reported or failed in run $run"; exit 1; }
done
for mistake in "$@"; do
  for run in $(seq 21); do
    [ "$run" = 21 ] && { echo "$mistake: not found in 20 runs"; exit 1; }
    "$binary" "$mistake" >/dev/null 2>&1
    [ $? = 66 ] && { echo "$mistake: found in run $run"; break; }
  done
done
