#!/usr/bin/env bash
# Test the lm-eval host with an lm-eval other than the pinned one, in a virtual environment of its own under build/.
#
#   .ci/test_lm_eval.sh 0.4.13                          a release, or a pre-release such as 0.5.0.dev1
#   .ci/test_lm_eval.sh pre                             the newest pre-release
#   .ci/test_lm_eval.sh ~/lm-evaluation-harness         a checkout, as it is now
#   .ci/test_lm_eval.sh --show 0.4.13                   only say what would be installed, and where
#
# Everything but lm-eval has the version of constraints.txt. Further arguments go to pytest, whose exit status is the script's.
set -euo pipefail
cd "$(dirname "$0")/.."
TESTS="tests/hosts/lm_eval tests/hosts/lightning/test_lm_eval_callback.py tests/testing/test_contract.py tests/demo
       tests/test_focal_everywhere.py xent_metrics/hosts/lm_eval"

show=; if [ "${1-}" = --show ]; then show=1; shift; fi
given=${1:?"usage: .ci/test_lm_eval.sh [--show] VERSION|pre|CHECKOUT [PYTEST_OPTIONS]"}
shift
case $given in
  pre) wanted="lm_eval[api,hf]>=0.dev0" ;;
  */* | . | ..)
    [ -f "$given/lm_eval/__init__.py" ] || { echo "$given is no checkout of lm-evaluation-harness: no lm_eval/__init__.py in it" >&2; exit 2; }
    given=$(cd "$given" && pwd)
    wanted="$given[api,hf]" ;;
  [0-9]*) wanted="lm_eval[api,hf]==$given" ;;
  *) echo "expected a version, pre or the path of a checkout (./name); got $given" >&2; exit 2 ;;
esac
venv=build/lm-eval-$(basename "$given")
echo "$wanted in $venv"
[ -z "$show" ] || exit 0

python=$venv/bin/python
pip="$python -m pip install -q --no-compile --disable-pip-version-check"
[ -x "$python" ] || ${PYTHON:-python3} -m venv "$venv"
grep -v '^lm_eval==' constraints.txt > "$venv/constraints.txt"
# constraints.txt lists every package, so nothing has to be resolved: no other torch, and no lm-eval of pyproject.toml's range.
$pip --no-deps -r "$venv/constraints.txt"
$pip --no-deps -e . plugins/xent-metrics-emd plugins/xent-metrics-focal
$pip -U -c "$venv/constraints.txt" "$wanted"  # with what it needs besides

status=0
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1 XENT_METRICS_PLUGINS=emd,focal
# shellcheck disable=SC2086  # words
$python -m pytest -q --continue-on-collection-errors --dist loadfile -n "${WORKERS:-2}" $TESTS "$@" || status=$?
commit=$([ ! -e "$given/.git" ] || git -C "$given" describe --always --dirty)
echo "tested with lm_eval $($python -c 'from importlib.metadata import version; print(version("lm_eval"))')" \
  "from ${given}${commit:+ at $commit}"
exit $status
