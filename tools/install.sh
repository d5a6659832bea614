#!/bin/sh
# Install what a lock file names: `install.sh PYTHON [OPTION ...] LOCK_FILE`, into the environment of that Python.
#
# uv does in ten seconds what takes pip a minute. It is told pip's index, and knows nothing else of how pip is configured
# here: where it does not succeed, or does not run on this platform, pip does it.
set -u
cd "$(dirname "$0")/.." || exit 1
python=$1
shift

own=.venv/bin/python
[ -x .venv/bin/uv ] || $own -m pip --disable-pip-version-check --quiet install --only-binary :all: --require-hashes \
    -r requirements-install.lock 2>/dev/null
configured=$("$python" -m pip --disable-pip-version-check config list 2>/dev/null)  # which says nothing with `--quiet`
case $configured in *.no-index=* | *install.index-url=*) by_uv= ;; *) by_uv=yes ;; esac
if [ -x .venv/bin/uv ] && [ "$by_uv" ]; then
    index=${PIP_INDEX_URL:-$(printf '%s\n' "$configured" | sed -n "s/^global\.index-url='\(.*\)'\$/\1/p")}
    UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$index} \
        .venv/bin/uv pip install --no-config --quiet --python "$python" --require-hashes "$@" 2>.venv/uv.log && exit 0
    echo "uv did not succeed (.venv/uv.log says why); pip does it ..."
fi
# What is used is compiled when it is first imported: all of it is 300 MB of Python.
exec "$python" -m pip --disable-pip-version-check --quiet install --no-compile --require-hashes "$@"
