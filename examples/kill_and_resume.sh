#!/usr/bin/env bash
# Kill each stage of a build at random moments with SIGKILL, run the same command again until it ends, and compare every
# weight and readout with an uninterrupted build. The last line is `identical` or `different`.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export TRANSFORMERS_VERBOSITY=error HF_HUB_DISABLE_PROGRESS_BARS=1

"$python" - "$work" <<'PY'
import shutil, sys
from pathlib import Path
from gag.pocket.write import write_project

work = Path(sys.argv[1])
write_project(work / "whole", seed=1, entities=16)
shutil.copytree(work / "whole", work / "killed")
PY

stages=(adapt readouts align prototypes)
# a checkpoint after every step
settings=(--set adapt.checkpoint_minutes=0 --set align.checkpoint_minutes=0)
for stage in "${stages[@]}"; do
  "$python" -m gag "$stage" adjuvants --project "$work/whole" "${settings[@]}" 2> /dev/null
done

for stage in "${stages[@]}"; do
  kills=0
  spread=4
  if [ "$stage" = adapt ]; then spread=12; fi
  while true; do
    setsid "$python" -m gag "$stage" adjuvants --project "$work/killed" "${settings[@]}" > /dev/null 2> "$work/errors" &
    child=$!
    # Loading takes some seconds; then anything from the first step to the last manifest may be hit.
    if [ "$kills" -lt "${KILLS:-4}" ]; then
      sleep "$((RANDOM % spread + 3)).$((RANDOM % 10))"
      if kill -9 -- "-$child" 2> /dev/null; then kills=$((kills + 1)); fi
    fi
    if wait "$child" 2> /dev/null; then break; fi
    if [ "$kills" -ge "${KILLS:-4}" ] && [ -s "$work/errors" ] && grep -q '^gag: ' "$work/errors"; then
      cat "$work/errors" >&2
      exit 1
    fi
  done
  echo "$stage: killed $kills times, then finished"
done

"$python" - "$work" <<'PY'
import sys
from pathlib import Path
from safetensors.torch import load_file

whole, killed = Path(sys.argv[1]) / "whole" / "runs", Path(sys.argv[1]) / "killed" / "runs"
files = sorted(path.relative_to(whole) for path in whole.rglob("*.safetensors"))
others = sorted(path.relative_to(killed) for path in killed.rglob("*.safetensors"))
same = files == others and len(files) >= 4
for name in files if same else []:
    a, b = load_file(whole / name), load_file(killed / name)
    same = same and a.keys() == b.keys() and all(a[key].equal(b[key]) for key in a)
print("identical" if same else "different")
sys.exit(not same)
PY
