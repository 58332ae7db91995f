# For tests/nix/run and tests/nix/evaluate, in the repository's directory: Nix, wherever it comes from, a
# scratch directory, and checks that are counted.
#
# The tools are taken from PATH. Where they are not there, Nix comes from Debian's packages, unpacked
# and not installed, and nixfmt and deadnix from crates.io; they are kept in $CASTORE_FS_TEST_CACHE
# (~/.cache/castore-fs-tests).

cache=${CASTORE_FS_TEST_CACHE:-$HOME/.cache/castore-fs-tests}/nix
mkdir -p "$cache"
scratch=$(mktemp -d)
# A Nix store is read-only to its own owner.
trap 'chmod -R u+w "$scratch" && rm -rf "$scratch"' EXIT

passed=0
failed=0
notes=()

# check WHAT COMMAND...: continues after a failure. The output of the command is shown if it fails; the last
# line that begins with "# " in any case.
check() {
    local what=$1 status
    shift
    # Not as a condition, in which a shell lets failures pass.
    set +e
    (set -e && "$@") >"$scratch/log" 2>&1
    status=$?
    set -e
    if [ "$status" = 0 ]; then
        passed=$((passed + 1))
        echo "ok      $what$(sed -n 's/^# /: /p' "$scratch/log" | tail -n 1)"
    else
        failed=$((failed + 1))
        echo "FAILED  $what"
        sed 's/^/        /' "$scratch/log"
    fi
}

# note WHAT: is no part of this run, and why.
note() {
    notes+=("$1")
}

finish() {
    echo
    for what in "${notes[@]}"; do
        echo "note: $what"
    done
    echo "$passed passed, $failed failed"
    [ "$failed" = 0 ]
}

# --- Nix

debian_nix=$cache/debian-trixie-nix

get_debian_nix() {
    [ -e "$debian_nix/usr/bin/nix" ] && return
    if ! command -v mmdebstrap >/dev/null; then
        apt-get update -qq
        apt-get install -y -qq --no-install-recommends mmdebstrap >/dev/null
    fi
    rm -rf "$debian_nix.new"
    mmdebstrap --quiet --variant=extract --include=nix-bin,git trixie "$debian_nix.new"
    mv "$debian_nix.new" "$debian_nix"
}

# nix_as NAME ARGUMENTS…: Nix goes by the name that it is called by.
if command -v nix >/dev/null; then
    nix_as() { command "$@"; }
else
    get_debian_nix
    nix_as() {
        local name=$1
        shift
        # Of another release than this machine, perhaps: with its own loader and libraries.
        local loader=("$debian_nix"/usr/lib*/ld-linux-*.so.*)
        "${loader[0]}" \
            --library-path "$(echo "$debian_nix"/usr/lib/*-linux-gnu)" \
            --argv0 "$name" "$debian_nix/usr/bin/nix" "$@"
    }
fi

nix() {
    nix_as nix --extra-experimental-features 'nix-command flakes' \
        --option build-users-group '' --store "$scratch/store" "$@"
}

# tool NAME CRATE VERSION
tool() {
    local name=$1 crate=$2 version=$3
    command -v "$name" >/dev/null && return
    [ -x "$cache/tools/bin/$name" ] && return
    echo "        building $crate $version"
    cargo install --quiet --locked --debug --root "$cache/tools" --target-dir "$cache/target" --version "$version" "$crate"
    rm -rf "$cache/target"
}
PATH=$PATH:$cache/tools/bin

# --- the program

# The program: $CASTORE_FS_BIN, or as this checkout builds it.
program() {
    if [ -n "${CASTORE_FS_BIN-}" ]; then
        realpath "$CASTORE_FS_BIN"
    else
        [ -x target/debug/castore-fs ] || cargo build --quiet --locked >&2
        realpath target/debug/castore-fs
    fi
}

# --- the documentation's examples

documents=(README.md docs/nixos.md)

# snippets DIRECTORY: puts each example in Nix into DIRECTORY/<document>-<number>/example.nix.
snippets() {
    local directory=$1 document
    for document in "${documents[@]}"; do
        awk -v directory="$directory" -v name="$(basename "$document" .md)" '
            /^```nix$/ { number++; file = directory "/" name "-" number; system("mkdir -p " file); file = file "/example.nix"; next }
            /^```$/ { file = "" }
            file { print > file }
        ' "$document"
    done
}
