# Makes the virtual environment $VENV from a lock file; says what is missing and what to do.
set -eu
lock=$1
if [ ! -x "$VENV/bin/python" ]; then
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || {
        echo "setup: Python 3.11 or newer is needed, '$PYTHON' is not" >&2
        echo "  next: install it, then: make setup PYTHON=python3.12" >&2
        exit 1
    }
    "$PYTHON" -m venv "$VENV" || {
        echo "setup: $PYTHON cannot make virtual environments" >&2
        echo "  next: install its venv module (Debian: apt-get install python3-venv)" >&2
        exit 1
    }
fi
echo "· installing $(grep -c '^[a-z]' "$lock") packages from $lock" >&2
"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r "$lock" || {
    echo "setup: the packages of $lock could not be installed" >&2
    echo "  next: check the network and the package index, then run the command again" >&2
    exit 1
}
if "$VENV/bin/python" -c 'import hatchling, editables' 2>/dev/null; then
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
else
    # Without the build tools: the same two things an editable install writes.
    site=$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    pwd > "$site/hotline-checkout.pth"
    printf '#!%s/bin/python\nfrom cli.__main__ import main\nmain()\n' "$(cd "$VENV" && pwd)" > "$VENV/bin/hotline"
    chmod +x "$VENV/bin/hotline"
fi
"$VENV/bin/python" -m deploy.local
