# Sourced by the commands beside it: makes a virtual environment and installs this project into it.
# Usage: ensure_environment FOLDER EXTRAS [PYTHON [REQUIREMENT ...]]; an empty PYTHON: any that fits.
# Installs again only when setup.py or what is asked for changed.
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

find_python() {
    local candidate
    for candidate in "$@" python3 python3.13 python3.12 python3.11 python3.10; do
        if command -v "$candidate" >/dev/null 2>&1 && "$candidate" -c \
            'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    echo "Python 3.10 to 3.13 is needed and none was found; install one (Debian: apt install python3-venv)" >&2
    return 1
}

ensure_environment() {
    local folder=$1 extras=$2 python stamp started=$SECONDS
    python=$(find_python ${3:+"$3"})
    shift $(($# < 3 ? $# : 3))
    stamp=$(describe_installation "$python" "$extras" "$@")
    if [ "$(cat "$folder/.installed" 2>/dev/null)" != "$stamp" ]; then
        echo "Installing into $folder (once; a few minutes) ..." >&2
        rm -rf "$folder"
        "$python" -m venv "$folder"
        "$folder/bin/python" -m pip install --quiet --disable-pip-version-check -e "$repository$extras" "$@"
        echo "$stamp" >"$folder/.installed"
        echo "Installed in $((SECONDS - started)) s" >&2
    fi
}

describe_installation() {
    local python=$1
    shift
    echo "$("$python" -V) $* $(sha256sum <"$repository/setup.py")"
}
