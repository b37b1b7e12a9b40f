# Sourced by the other commands of this folder: makes virtual environments with this project in them.
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
    if ! is_installed "$folder" "$stamp"; then
        echo "Installing into $folder (once; a few minutes) ..." >&2
        rm -rf "$folder"
        "$python" -m venv "$folder"
        "$folder/bin/python" -m pip install --quiet --disable-pip-version-check -e "$repository$extras" "$@"
        echo "$stamp" >"$folder/.installed"
        echo "Installed in $((SECONDS - started)) s" >&2
    fi
}

is_installed() {
    [ "$(cat "$1/.installed" 2>/dev/null)" = "$2" ]
}

describe_installation() {
    local python=$1
    shift
    echo "$("$python" -V) $* $(sha256sum <"$repository/setup.py")"
}

# Tests, linters and benchmarks.
test_environment="$repository/.venv-test"
test_extras="[pipeline,local,metrics,dev]"
ensure_test_environment() {
    ensure_environment "$test_environment" "$test_extras"
}

# The pipeline and its local services: the environment of the tests has all of that, and is used if it is there.
ensure_pipeline_environment() {
    local python
    environment=$test_environment
    if python=$(find_python) && is_installed "$environment" "$(describe_installation "$python" "$test_extras")"; then
        return
    fi
    environment="$repository/.venv"
    ensure_environment "$environment" "[pipeline,local]"
}

# The device with what its tests need, without TensorFlow and Luigi.
# Usage: ensure_device_environment FOLDER [PYTHON]
ensure_device_environment() {
    ensure_environment "$1" "[metrics]" "${2-}" pytest pytest-timeout "pytest-xdist>=3.7" hypothesis iotcore
}
