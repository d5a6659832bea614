#!/bin/sh
# Install what a lock file names: `install.sh PYTHON [OPTION ...] LOCK_FILE`, into the environment of that Python.
#
# uv does in ten seconds what takes pip a minute. It is told pip's index, and knows nothing else of how pip is configured
# here: where it does not succeed, or does not run on this platform, pip does it.
set -u
cd "$(dirname "$0")/.." || exit 1
python=$1
shift
pip() { "$python" -m pip --disable-pip-version-check --quiet "$@"; }

own=.venv/bin/python
[ -x .venv/bin/uv ] || $own -m pip --disable-pip-version-check --quiet install --only-binary :all: --require-hashes \
    -r requirements-install.lock 2>/dev/null
if [ -x .venv/bin/uv ] && [ -z "${PIP_NO_INDEX:-}$(pip config get install.index-url 2>/dev/null)" ]; then
    index=${PIP_INDEX_URL:-$(pip config get global.index-url 2>/dev/null)}
    UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$index} \
        .venv/bin/uv pip install --no-config --quiet --python "$python" --require-hashes "$@" 2>.venv/uv.log && exit 0
    echo "uv did not succeed (.venv/uv.log says why); pip does it ..."
fi
# What is used is compiled when it is first imported: all of it is 300 MB of Python.
exec "$python" -m pip --disable-pip-version-check --quiet install --no-compile --require-hashes "$@"
