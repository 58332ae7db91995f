# Imports a closure into a store and adds its names to a file, which says what a guest is shown (`roots-from`):
#
#   import-closure.sh STORE CLOSURE-INFO FILE
#
# CLOSURE-INFO is what nixpkgs' `closureInfo` makes: its `store-paths` are the closure, and it is served with
# them. POSIX shell; needs castore-fs(1).
set -eu

store=$1
info=$2
file=$3

xargs -- castore-fs import --store "$store" "$info" <"$info/store-paths"
# What a running guest has been shown it is shown until the host boots again.
touch "$file"
{
    cat "$file" "$info/store-paths"
    echo "$info"
} | sort -u >"$file.new"
mv "$file.new" "$file"
