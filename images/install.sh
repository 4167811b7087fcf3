#!/bin/sh
# Installs into /opt/venv, at the versions of requirements.lock. Wheels in wheels/ are preferred; with OFFLINE=1
# they are all there is.
#
#   install.sh packages FILE…        names, one a line, and all that they need
#   install.sh alone FILE…           names without what they ask for
#   install.sh further NAME==V…      requirements as they are, and all that they need
#   install.sh pinned NAME…          names with all that they need
#   install.sh project               the project's own wheel, without dependencies, and its steps where pods call them
set -eu
# torch's version stands outside the lock, because it comes before everything else; the project pins the same one.
{ cat requirements.lock requirements-alone.lock | grep -v '^#'; echo 'torch==2.13.0'; } > constraints.txt
where="--find-links wheels"
if [ "${OFFLINE:-}" = 1 ]; then where="--no-index $where"; fi
pip() { /opt/venv/bin/python -m pip "$@"; }
pinned() { for name in "$@"; do grep -i "^$name==" constraints.txt || { echo "$name is not in the lock" >&2; exit 1; }; done; }
names() { sed 's/#.*//' "$@" | tr -d ' \t' | grep .; }

command="$1"
shift
case "$command" in
  packages)
    # shellcheck disable=SC2086,SC2046
    pip install $where -c constraints.txt $(printf ' -r %s' "$@") ;;
  pinned)
    # shellcheck disable=SC2086,SC2046
    pip install $where $(pinned "$@") ;;
  alone)
    # shellcheck disable=SC2086,SC2046
    pip install $where "setuptools>=77" wheel
    # shellcheck disable=SC2086,SC2046
    pip install $where --no-deps --no-build-isolation $(pinned $(names "$@")) ;;
  further)
    # shellcheck disable=SC2086
    pip install $where -c constraints.txt "$@" ;;
  project)
    # shellcheck disable=SC2086
    pip install $where --no-deps --no-build-isolation .
    # Pods run `python -m components.STEP`, which the package carries within itself (setup.py).
    echo llm_retriever/_kubeflow > "$(/opt/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/steps.pth"
    pip uninstall --yes setuptools wheel pip ;;
  *)
    echo "install.sh: unknown command $command" >&2
    exit 2 ;;
esac
