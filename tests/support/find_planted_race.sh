#!/bin/sh
# find_planted_race.sh BINARY: passes when ThreadSanitizer reports the planted race within 20 runs and
# stays silent over 5 clean ones. (66 is TSan's exit code for a report.)
set -u
for run in 1 2 3 4 5; do
  "$1" clean || { echo "the clean traffic was reported or failed in run $run"; exit 1; }
done
for run in $(seq 20); do
  "$1" >/dev/null 2>&1
  [ $? = 66 ] && { echo "planted race found in run $run"; exit 0; }
done
echo "planted race not found in 20 runs"
exit 1
