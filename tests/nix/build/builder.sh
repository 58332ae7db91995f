# The phases of the package's derivation, in the order of nixpkgs' stdenv: unpack, build, check, install,
# postInstall, fixup. The environment has what tests/nix/build/default.nix says.
#
# Nix's own sandbox is off, since the machine's Rust is not in its store. What a package's tests cannot
# have in one they do not have here: root, a network, devices (/dev/fuse), a home, other files of the
# checkout.
set -euo pipefail

if [ "${1-}" != inside ]; then
    export SELF=$0 HOME=/homeless-shelter
    root=()
    [ "$(id -u)" = 0 ] || root=(--user --map-root-user)
    exec unshare "${root[@]}" --net --mount --propagation private bash -euc '
        ip link set lo up
        devices=$NIX_BUILD_TOP/dev
        mkdir "$devices"
        mount -t tmpfs devices "$devices"
        for device in full null random tty urandom zero; do
            touch "$devices/$device"
            mount --bind "/dev/$device" "$devices/$device"
        done
        mkdir -m 1777 "$devices/shm"
        ln -s /proc/self/fd "$devices/fd"
        for number in 0:stdin 1:stdout 2:stderr; do
            ln -s "/proc/self/fd/${number%:*}" "$devices/${number#*:}"
        done
        mount --rbind "$devices" /dev
        exec unshare --user --map-user=1000 --map-group=100 bash "$SELF" inside
    '
fi

phase() { printf '\n-- %s\n' "$1"; }

# As nixpkgs' stdenv and installShellFiles have them, as far as they are used.
substituteInPlace() {
    local files=() old new file
    while [ $# -gt 0 ] && [ "$1" != --replace-quiet ]; do
        files+=("$1")
        shift
    done
    [ $# = 3 ] || { echo "substituteInPlace FILE… --replace-quiet OLD NEW, and nothing else here" >&2; return 1; }
    old=$2 new=$3
    for file in "${files[@]}"; do
        local text
        text=$(cat "$file" && printf x)
        text=${text%x}
        chmod u+w "$file"
        printf %s "${text//"$old"/"$new"}" >"$file"
    done
}
installShellCompletion() {
    local directory name
    case $1 in
        --bash) directory=bash-completion/completions ;;
        --fish) directory=fish/vendor_completions.d ;;
        --zsh) directory=zsh/site-functions ;;
        *) echo "installShellCompletion --bash|--fish|--zsh FILE, and nothing else here" >&2; return 1 ;;
    esac
    name=$(basename "$2")
    [ -s "$2" ] || { echo "the completions $2 are empty" >&2; return 1; }
    install -Dm644 "$2" "$out/share/$directory/$name"
}
installManPage() {
    local page
    for page; do
        head -n 5 "$page" | grep -q '^\.TH' || { echo "$page is no page of the manual" >&2; return 1; }
        install -Dm644 -t "$out/share/man/man${page##*.}" "$page"
    done
}

phase unpack
# The same directory each time: what did not change is not built again.
source=$CARGO_TARGET_DIR/package/source
rm -rf "$source"
mkdir -p "$CARGO_TARGET_DIR/package"
cp -r "$src" "$source"
chmod -R u+w "$source"
cd "$source"
cmp "$cargoLock" Cargo.lock

phase build
cargo build --frozen

phase check
# shellcheck disable=SC2086 # lists of words
cargo test --frozen $cargoTestFlags -- $checkFlags

phase install
mkdir -p "$out/bin"
find "$CARGO_TARGET_DIR/debug" -maxdepth 1 -type f -executable -name castore-fs -exec install -t "$out/bin" {} +
[ -n "$(ls "$out/bin")" ]

phase postInstall
eval "$postInstall"

phase fixup
# A program that NixOS would not find, or that this build left behind.
! grep -r /usr/bin/ "$out/lib" || { echo "this runs what NixOS has not got" >&2; exit 1; }
! grep -rI "$source" "$out" || { echo "this refers to the build's own directory" >&2; exit 1; }
gzip -n "$out"/share/man/man*/*
